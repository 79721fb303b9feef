"""The ASGI application of one process: the gate around Litestar around MCP."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import structlog
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from domain.errors import TemporarilyUnavailable, TooManyRequests
from entrypoints import metrics
from entrypoints.container import Storage, figures, serving_container, storage
from entrypoints.http.gate import Gate
from entrypoints.http.load import Load, Shed
from entrypoints.http.message import Refusal
from entrypoints.http.oauth import oauth_handlers
from entrypoints.http.pages import asset
from entrypoints.http.places import Kind, away, place_of, refusal_body, too_many
from entrypoints.http.proxies import trusted_networks
from entrypoints.http.server_page import server_page
from entrypoints.http.sign_in import sign_in_pages
from entrypoints.http.watch import Readiness, Watch
from entrypoints.logs import configure_logs, log_what_nobody_awaits
from entrypoints.mcp.server import McpEndpoint
from entrypoints.settings import Settings
from entrypoints.traces import Traces, traces_wanted

_FAILED = Refusal(500, "Something went wrong here, and it is not your doing: try again.")

_TRY_AGAIN_SECONDS = 10.0  # what is missing may be room for one more open file

_log = structlog.get_logger(__name__)


def create_app(load: Load) -> ASGIApp:
    """The application of a worker process, with settings from the environment.

    A worker ends when the process that started it has ended, however that was: orphans would hold its port. Its share
    in an embedded server is given back at the end, by the last one so that the server stops.
    """
    configure_logs()
    settings = Settings.from_environment()
    share = ExitStack()

    @asynccontextmanager
    async def working() -> AsyncIterator[None]:
        parent = multiprocessing.parent_process()
        watch = asyncio.create_task(_end_with(parent)) if parent is not None else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()
            await asyncio.to_thread(share.close)

    return application(share.enter_context(storage(settings)), settings, load, working)


def application(
    storage: Storage,
    settings: Settings,
    load: Load | None = None,
    around: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    show_mail: Callable[[str], None] | None = None,
) -> ASGIApp:
    """The application on a storage; its pools are open from ASGI start-up to shut-down, within `around`.

    `load` is told what is taken on, and tells when the process has started, and when it is about to end.
    For development, `show_mail` gets what would be sent by mail, and requests leave no line in the log.
    """
    load = load or Load()
    traces = Traces() if traces_wanted() else None
    database = storage.database()
    database.on_statement = traces.statement if traces is not None else None
    container = serving_container(database, settings, show_mail)
    container.check_dependencies()
    endpoint = McpEndpoint(
        container.learning(), container.call_log(), container.limits(), container.clock(), container.ids(), traces
    )
    take_figures = figures(container)
    sheds = [metrics.Growth(metrics.sheds.labels(why.value), partial(load.sheds.__getitem__, why)) for why in Shed]

    def sample() -> None:
        take_figures()
        for growth in sheds:
            growth.take()
        metrics.http_requests_in_flight.set(watch.in_flight)

    @asynccontextmanager
    async def serving() -> AsyncIterator[None]:
        log_what_nobody_awaits()
        async with around(), database:
            kept = (storage.keep_running(), metrics.sampled(sample), pages.make_after(load.started))
            keepers = [asyncio.create_task(each) for each in kept]
            try:
                async with endpoint.running():
                    yield
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.wait(keepers)
        if traces is not None:
            await asyncio.to_thread(traces.close)

    visitors = container.visitors()

    def make_pages() -> Litestar:
        sign_in = container.sign_in()
        return Litestar(
            [
                asset,
                *oauth_handlers(container.authorization()),
                *sign_in_pages(sign_in, container.codes()),
                *server_page(container.learning(), visitors, sign_in),
            ],
            exception_handlers={Exception: _refused},
            openapi_config=None,
            logging_config=None,
        )

    pages = _Pages(make_pages)
    gate = Gate(
        _Inside(endpoint, pages, serving),
        container.servers(),
        container.identity(),
        visitors,
        container.limits(),
        base_domain=settings.base_domain,
        default_server=settings.default_server,
        allowed_origins=settings.origins(),
        trusted_proxies=trusted_networks(settings.trusted_proxies or ""),
        load=load,
        before_pages=pages.wait,
    )
    trouble_of_database = storage.trouble_of(database)

    async def trouble() -> str | None:
        return "pages" if pages.are_missing else await trouble_of_database()

    readiness = Readiness(trouble, lambda: load.is_stopping)
    watch = Watch(gate, readiness, traces, logs_requests=show_mail is None)
    return watch


class _Pages:
    """What Litestar answers, pages and OAuth: made in a thread, once calls are answered.

    What it takes, signing in above all, would make the start longer by a seventh; and loaded in the first sign-in, it
    would hold up everybody. In a thread it makes calls slower by some milliseconds while it lasts.
    """

    def __init__(self, make: Callable[[], Litestar]) -> None:
        self.are_missing = False
        """Whether they could not be made when last it was tried. Whoever asks for one has it tried again."""
        self._make = make
        self._made: asyncio.Future[Litestar] | None = None

    async def litestar(self) -> Litestar:
        """The application that answers for them, made by the first who asks.

        Raises:
            Exception: whatever came in between; a module that is missing, as a rule.
        """
        if self._made is None:
            self._made = asyncio.get_running_loop().run_in_executor(None, self._make)
            self._made.add_done_callback(self._look)
        return await asyncio.shield(self._made)

    async def wait(self) -> None:
        """Returns once nobody is making them."""
        if self._made is not None and not self._made.done():
            await asyncio.wait([self._made])

    async def make_after(self, moment: asyncio.Event) -> None:
        """Has them made without anybody asking."""
        await moment.wait()
        while True:
            try:
                await self.litestar()
                return
            except Exception as error:  # noqa: BLE001  # whatever it is, calls go on
                missing = error.name if isinstance(error, ImportError) else None
                _log.error("there are no pages, and nobody can sign in", module=missing, exc_info=error)
            await asyncio.sleep(_TRY_AGAIN_SECONDS)

    def _look(self, made: asyncio.Future[Litestar]) -> None:
        self.are_missing = made.cancelled() or made.exception() is not None
        if self.are_missing:
            self._made = None


class _Inside:
    """Past the gate: calls go to the MCP endpoint, on the way to which Litestar would only look for it.

    `serving` is what goes on from ASGI start-up to shut-down.
    """

    def __init__(
        self, endpoint: McpEndpoint, pages: _Pages, serving: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self.pages = pages
        self._endpoint = endpoint
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # type: ignore[comparison-overlap]  # servers send the plain string
            await self._live(receive, send)
            return
        has_begun = False

        async def sent(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        is_call = scope["path"] == "/mcp"
        try:
            if is_call:
                await self._endpoint.handle(scope, receive, sent)
            else:
                litestar = await self.pages.litestar()
                await litestar(scope, receive, sent)
        except Exception as error:
            if has_begun:
                raise
            _log.error("request failed", handler="mcp" if is_call else "pages", exc_info=error)
            body, headers = refusal_body(_kind_at(scope), _FAILED)
            length = (b"content-length", str(len(body)).encode())
            await send({"type": "http.response.start", "status": _FAILED.status, "headers": [*headers, length]})
            await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _live(self, receive: Any, send: Any) -> None:
        """What goes wrong here is for the server to tell."""
        await receive()
        async with self._serving():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _refused(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Where errors on the way to a page or an OAuth answer become answers."""
    match error:
        case Refusal():
            refusal = error
        case TooManyRequests():
            refusal = too_many(error)
        case TemporarilyUnavailable():
            refusal = away()
        case HTTPException(status_code=405):
            refusal = Refusal(405, "This is not served here.", (b"allow", _methods_at(request).encode()))
        case HTTPException() if error.status_code < 500:
            refusal = Refusal(error.status_code, "This request cannot be understood.")
        case _:
            # Not the path: that of a visitor is a secret of theirs.
            _log.error("request failed", handler=str(request.route_handler), exc_info=error)
            refusal = _FAILED
    body, described = refusal_body(_kind_at(request.scope), refusal)
    headers = {name.decode(): value.decode() for name, value in (*described, *refusal.headers)}
    # Of text, Litestar says the encoding by itself.
    media_type = headers.pop("content-type").partition(";")[0]
    return Response(body, status_code=refusal.status, headers=headers, media_type=media_type)


def _kind_at(scope: Scope) -> Kind:
    place = place_of(scope["path"])
    return place.kind if place else Kind.PAGE


def _methods_at(request: Request[Any, Any, Any]) -> str:
    """RFC 9110 section 10.2.1. The router knows them, and its exception does not say them."""
    methods: set[str] = set()
    for route in request.app.routes:
        pattern = re.sub(r"\{[^}]*\}", "[^/]+", route.path_format)
        if isinstance(route, HTTPRoute) and re.fullmatch(pattern, request.scope["path"]):
            methods |= route.methods | ({"HEAD"} if "GET" in route.methods else set())
    return ", ".join(sorted(methods))


async def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """Stops this process in good order as soon as `parent` is gone, without holding on to its address."""
    is_gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(parent.sentinel, is_gone.set)
    try:
        await is_gone.wait()
    finally:
        loop.remove_reader(parent.sentinel)
    os.kill(os.getpid(), signal.SIGINT)
