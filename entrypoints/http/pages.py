"""The pages that people see in a browser: what they are made of, and how refusals look on them.

They need no script, ask no other host for anything, and are in one language; the style follows the reader's system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Response, get
from litestar.params import FromPath

from entrypoints.http.site import PAGE_HEADERS

_ASSETS = {
    name: (resources.files("entrypoints.http").joinpath("assets", name).read_bytes(), media_type)
    for name, media_type in (("cairn.css", "text/css; charset=utf-8"), ("cairn.js", "text/javascript; charset=utf-8"))
}
_A_YEAR = 31_536_000
_NOT_POSSIBLE = "This is not possible"
_UNKNOWN_HEADERS = {**PAGE_HEADERS, "content-type": "text/plain; charset=utf-8"}


def page(
    template: str, status: int = 200, headers: Mapping[str, str] = MappingProxyType({}), **values: Any
) -> Response[bytes]:
    """An HTML page of the template by this name, which gets `values`; all that is put into it is escaped."""
    text = _TEMPLATES.get_template(template).render(**values).encode()
    return Response(text, status_code=status, media_type=MediaType.HTML, headers={**PAGE_HEADERS, **headers})


def problem_page(
    status: int, title: str, text: str, headers: Mapping[str, str] = MappingProxyType({})
) -> Response[bytes]:
    """The page of a refusal. `text` is a sentence that says what to do."""
    return page("problem.html", status, headers, title=title, text=text)


def problem_html(problem: str) -> bytes:
    """The HTML of such a page, for those who make their answers themselves."""
    return _TEMPLATES.get_template("problem.html").render(title=_NOT_POSSIBLE, text=problem).encode()


@get("/assets/{name:str}", sync_to_thread=False)
def asset(name: FromPath[str]) -> Response[bytes | str]:
    """The stylesheet and the script. Their addresses change with what is in them."""
    if name not in _ASSETS:
        return Response("There is no such file.", status_code=404, headers=_UNKNOWN_HEADERS)
    content, media_type = _ASSETS[name]
    return Response(
        content,
        media_type=media_type,
        headers={"cache-control": f"public, max-age={_A_YEAR}, immutable", "x-content-type-options": "nosniff"},
    )


def _address_of(name: str) -> str:
    return f"/assets/{name}?{hashlib.sha256(_ASSETS[name][0]).hexdigest()[:16]}"


_TEMPLATES = Environment(
    loader=PackageLoader("entrypoints.http"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals["asset"] = _address_of
