"""The OAuth endpoints of a server's host, and the documents by which clients find them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from application.authorization import Authorization
from application.ports import OAuthAnswer, Parameters
from domain.oauth import AUTH_METHODS, GRANT_TYPES, SCOPES, WALKTHROUGHS
from entrypoints import metrics
from entrypoints.http.message import READER, Refusal, text_of
from entrypoints.http.pages import problem_page
from entrypoints.http.site import PAGE_HEADERS, body_of, browser_of, form_of, new_secret, query_of, visit

# What they say changes with a release; browsers' clients ask for them at every start.
_DOCUMENT_HEADERS = {"cache-control": "public, max-age=300", "x-content-type-options": "nosniff"}
# RFC 6749 section 5.1.
_ANSWER_HEADERS = {"cache-control": "no-store", "pragma": "no-cache", "x-content-type-options": "nosniff"}


def oauth_handlers(authorization: Authorization) -> list[HTTPRouteHandler]:
    """The handlers of what clients ask: RFC 9728, RFC 8414, RFC 6749, RFC 7009 and RFC 7591."""

    @get("/authorize")
    async def authorize(request: Request[Any, Any, Any]) -> Response[bytes]:
        found = visit(request)
        browser, headers = browser_of(request)
        id = new_secret()
        answer = await authorization.authorize(found.site, query_of(request), id, browser, found.address)
        if answer is None:
            metrics.sign_ins.labels("begun").inc()
            return _see(f"/sign-in?request={id}", headers)
        if answer.location is not None:
            return _see(answer.location)
        return problem_page(answer.status, "This sign-in cannot begin", answer.body["error_description"])

    @post("/token")
    async def token(request: Request[Any, Any, Any]) -> Response[bytes]:
        found, form = visit(request), await _form_of(request)
        return _json(await authorization.token(found.site, form, _authorization(request), found.address))

    @post("/revoke")
    async def revoke(request: Request[Any, Any, Any]) -> Response[bytes]:
        found, form = visit(request), await _form_of(request)
        return _json(await authorization.revoke(found.site, form, _authorization(request), found.address))

    @post("/register")
    async def register(request: Request[Any, Any, Any]) -> Response[bytes]:
        found, body = visit(request), await body_of(request)
        try:
            metadata = _metadata_of(request.headers.get("content-type", ""), body)
        except Refusal as refusal:
            error = {"error": "invalid_client_metadata", "error_description": refusal.problem}  # RFC 7591 section 3.2.2
            return _json(OAuthAnswer(400, error))
        return _json(await authorization.register(found.site, metadata, found.address))

    # Clients that know a server by its endpoint's address look at the forms with a path, OpenID clients at their own.
    @get(
        [
            "/.well-known/oauth-authorization-server",
            "/.well-known/oauth-authorization-server/mcp",
            "/.well-known/openid-configuration",
            "/.well-known/openid-configuration/mcp",
        ]
    )
    async def describe(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _authorization_server(visit(request).site.issuer, reads_documents=authorization.reads_documents)

    return [authorize, token, revoke, register, _resource_by_path, _resource_at_root, describe]


@get("/.well-known/oauth-protected-resource/mcp")
async def _resource_by_path(request: Request[Any, Any, Any]) -> Response[bytes]:
    return _resource(request, visit(request).site.resource)


@get("/.well-known/oauth-protected-resource")
async def _resource_at_root(request: Request[Any, Any, Any]) -> Response[bytes]:
    # RFC 9728 section 3.3: it describes the resource from whose address its own is made, which here has no path. Tokens
    # for that are tokens of the endpoint too.
    return _resource(request, visit(request).site.origin)


def _resource(request: Request[Any, Any, Any], resource: str) -> Response[bytes]:
    """RFC 9728 section 2. Not `offline_access`: that is between client and authorization server (SEP-2207)."""
    site = visit(request).site
    document = {
        "resource": resource,
        "resource_name": site.server.name,
        "authorization_servers": [site.issuer],
        "scopes_supported": [WALKTHROUGHS],
        "bearer_methods_supported": ["header"],
    }
    return _document(document)


def _authorization_server(issuer: str, *, reads_documents: bool) -> Response[bytes]:
    """RFC 8414 section 2."""
    document = {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "registration_endpoint": f"{issuer}/register",
        "revocation_endpoint": f"{issuer}/revoke",
        "scopes_supported": SCOPES,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": GRANT_TYPES,
        "token_endpoint_auth_methods_supported": AUTH_METHODS,
        "revocation_endpoint_auth_methods_supported": AUTH_METHODS,
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
        "client_id_metadata_document_supported": reads_documents,
    }
    return _document(document)


def _metadata_of(content_type: str, body: bytes) -> dict[str, Any]:
    try:
        metadata = READER.decode(text_of(body))
    except (ValueError, RecursionError):
        metadata = None
    if content_type.partition(";")[0].strip().lower() != "application/json" or not isinstance(metadata, dict):
        raise Refusal(400, "Send a JSON object of client metadata: 'Content-Type: application/json'.")
    return metadata


async def _form_of(request: Request[Any, Any, Any]) -> Parameters:
    try:
        return await form_of(request)
    except Refusal as refusal:
        # RFC 6749 section 5.2 has one status for whatever is malformed.
        raise Refusal(400 if refusal.status == 415 else refusal.status, refusal.problem) from refusal


def _authorization(request: Request[Any, Any, Any]) -> str | None:
    return request.headers.get("authorization")


def _see(location: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response[bytes]:
    to = {**PAGE_HEADERS, **headers, "location": location}
    return Response(b"", status_code=303, media_type="text/plain", headers=to)


def _json(answer: OAuthAnswer) -> Response[bytes]:
    challenge = {} if answer.challenge is None else {"www-authenticate": answer.challenge}
    return _encoded(answer.body, answer.status, {**_ANSWER_HEADERS, **challenge})


def _document(document: dict[str, Any]) -> Response[bytes]:
    return _encoded(document, 200, _DOCUMENT_HEADERS)


def _encoded(body: Any, status: int, headers: dict[str, str]) -> Response[bytes]:
    content = msgspec.json.encode(body)
    return Response(content, status_code=status, media_type="application/json", headers=headers)
