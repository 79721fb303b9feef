"""OAuth 2.1 on the host of each server, on Authlib's framework-free core: only this module knows it.

Authlib is synchronous; its statements run in SQLAlchemy's `run_sync`, one transaction a request. Whoever issues or ends
anything in a family holds the row of its grant meanwhile, and takes it before any other row of the family: so a code
that is redeemed eight times at once is good once, and nothing is issued past a revocation. A refusal commits too.

Rows are held in one order everywhere, here and where people are erased: grant, person, sign-in, and then the rest.

Authlib knows no families, no RFC 8707 and no RFC 9207, allows requests without PKCE or with `plain`, and fails where an
error description repeats what was sent, unless that is plain ASCII. So what was sent is looked at beforehand.
"""

from __future__ import annotations

import base64
import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote

from authlib.oauth2.rfc6749 import AuthorizationServer as AuthlibServer
from authlib.oauth2.rfc6749 import OAuth2Error, OAuth2Request, grants
from authlib.oauth2.rfc6749.errors import (
    AccessDeniedError,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7009 import RevocationEndpoint
from sqlalchemy import Column, ColumnElement, Connection, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.connections import Database
from adapters.postgres.sign_in import stored_state, sweep
from adapters.postgres.tables import (
    access_tokens,
    mcp_server_users,
    oauth_authorizations,
    oauth_clients,
    oauth_codes,
    oauth_grants,
    oauth_refresh_tokens,
)
from application.ports import Ids, OAuthAnswer, Parameters, SignInKey
from domain.oauth import (
    ACCESS_LIFETIME,
    AUTH_METHODS,
    CODE_LIFETIME,
    DOCUMENT_KEPT,
    GRANT_TYPES,
    REFRESH_LIFETIME,
    UNUSED_LIFETIME,
    Client,
    ClientRefused,
    Site,
    Use,
    granted_scope,
    is_challenge,
    is_document_url,
    is_known,
    is_to_be_read,
    may_redirect,
    proves,
    redirect,
    use_of_code,
    use_of_refresh_token,
)
from domain.sign_in import SIGN_IN_LIFETIME, AskingClient, SignInState
from domain.tenancy import Millis, ServerKey, UserId, hash_of

# Authlib's debug lines hold tokens.
logging.getLogger("authlib").setLevel(logging.INFO)

_T = TypeVar("_T")

# What is swept in passing, so that nobody waits for it.
_MAX_SWEPT = 100
# What of a request counts, and is kept until the person has signed in; the rest is ignored (RFC 6749 section 3.1).
_ASKED = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
    "resource",
    "response_mode",
)
# In the words of RFC 6749 section 5.2: ASCII without quotes and backslashes.
_PROBLEMS = {
    "invalid_client": "This client is not known here, or its secret is wrong: register it again.",
    "invalid_grant": "This is good for no token, or not any more: sign in again.",
    "invalid_request": "A parameter is missing, or cannot be read.",
}

_CLIENT = oauth_clients.c
_GRANT = oauth_grants.c
_CODE = oauth_codes.c
_REFRESH = oauth_refresh_tokens.c
_ACCESS = access_tokens.c
_PENDING = oauth_authorizations.c


class PostgresAuthorizationServer:
    """`AuthorizationServer` on PostgreSQL."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database
        self._ids = ids

    async def authorize(self, site: Site, parameters: Parameters, key: SignInKey, now: Millis) -> OAuthAnswer | None:
        flaw = _flaw(parameters)
        if flaw is not None:
            return _refused(flaw)

        def begin(server: _Server) -> OAuthAnswer | SignInState:
            return server.begin(_Request("GET", parameters))

        async with self._database.transaction(key.server.organization_id) as connection:
            begun = await self._served(connection, site, now, begin)
            if isinstance(begun, OAuthAnswer):
                return begun
            # Both are what anybody may leave behind.
            await sweep(connection, key, now)
            await _forget_unused_clients(connection, key.server, now)
            await connection.execute(
                insert(oauth_authorizations).values(
                    organization_id=key.server.organization_id,
                    mcp_server_id=key.server.server_id,
                    id_hash=key.id_hash,
                    browser_hash=key.browser_hash,
                    request={name: value for name, value in parameters if name in _ASKED},
                    sign_in=stored_state(begun),
                    created_at=now,
                    expires_at=now + SIGN_IN_LIFETIME,
                )
            )
        return None

    async def finish(self, site: Site, key: SignInKey, user: UserId | None, now: Millis) -> OAuthAnswer:
        async with self._database.transaction(key.server.organization_id) as connection:
            # The person first: whoever erases them holds them, and then wants their sign-ins.
            is_there = user is None or await _is_there(connection, key.server, user)
            # Whoever deletes it finishes it; a second one waits, and finds it gone.
            ended = (
                await connection.execute(
                    delete(oauth_authorizations)
                    .where(
                        _here(_PENDING, key.server),
                        _PENDING.id_hash == key.id_hash,
                        _PENDING.browser_hash == key.browser_hash,
                        _PENDING.expires_at > now,
                        _PENDING.visitor_id.is_(None),
                    )
                    .returning(_PENDING.request, _PENDING.created_at)
                )
            ).one_or_none()
            if ended is None or not is_there:
                return _refused("This sign-in is over: start again from your MCP client.")
            request = _Request("GET", list(ended.request.items()))
            # The client is judged as of the beginning: its time may have run out since.
            return await self._served(
                connection, site, now, lambda server: server.finish(request, user), begun_at=ended.created_at
            )

    async def token(self, site: Site, parameters: Parameters, authorization: str | None, now: Millis) -> OAuthAnswer:
        def issue(server: _Server, request: _Request) -> OAuthAnswer:
            match request.payload.grant_type:
                case None:
                    return _refused("Say by grant_type what you have.")
                case grant_type if grant_type not in GRANT_TYPES:
                    return _refused(f"grant_type is one of: {', '.join(GRANT_TYPES)}.", "unsupported_grant_type")
                case _:
                    return _answer(server.create_token_response(request))

        return await self._post(site, parameters, authorization, now, issue)

    async def revoke(self, site: Site, parameters: Parameters, authorization: str | None, now: Millis) -> OAuthAnswer:
        def end(server: _Server, request: _Request) -> OAuthAnswer:
            return _answer(server.create_endpoint_response(_Revocation.ENDPOINT_NAME, request))

        # Where a token is looked for does not depend on what it is said to be (RFC 7009 section 2.1 allows that).
        told = [(name, value) for name, value in parameters if name != "token_type_hint"]
        return await self._post(site, told, authorization, now, end)

    async def register(self, site: Site, metadata: Mapping[str, Any], now: Millis) -> OAuthAnswer:
        try:
            client = Client.registered(metadata)
        except ClientRefused as refused:
            return _refused(refused.problem, refused.error)
        server = site.server.key
        client_id = self._ids.new("client")
        secret = None if client.auth_method == "none" else self._ids.token("cairn_secret")
        async with self._database.transaction(server.organization_id) as connection:
            await _forget_unused_clients(connection, server, now)
            await connection.execute(
                insert(oauth_clients).values(
                    organization_id=server.organization_id,
                    mcp_server_id=server.server_id,
                    client_id=client_id,
                    metadata=client.metadata(),
                    secret_hash=None if secret is None else hash_of(secret),
                    created_at=now,
                )
            )
        issued = {"client_id": client_id, "client_id_issued_at": now // 1000}
        proof = {} if secret is None else {"client_secret": secret, "client_secret_expires_at": 0}
        return OAuthAnswer(201, {**issued, **proof, **client.metadata()})

    async def wants_document(self, site: Site, client_id: str, now: Millis) -> bool:
        if not is_document_url(client_id):
            return False
        async with self._database.transaction(site.server.key.organization_id) as connection:
            read_at = await connection.scalar(select(_CLIENT.created_at).where(_client(site.server.key, client_id)))
        return is_to_be_read(read_at, now)

    async def keep_document(self, site: Site, client_id: str, document: Mapping[str, Any] | None, now: Millis) -> None:
        server = site.server.key
        client: Client | None = None
        if document is not None:
            with suppress(ClientRefused):
                client = Client.documented(client_id, document)
        async with self._database.transaction(server.organization_id) as connection:
            if client is None:
                # Unknown from now on. Those who have signed in with it stay signed in, and those who are about to may.
                forgotten = func.least(_CLIENT.created_at, now - DOCUMENT_KEPT)
                await connection.execute(
                    update(oauth_clients).where(_client(server, client_id)).values(created_at=forgotten)
                )
                return
            read = {"metadata": client.metadata(), "created_at": now}
            statement = insert(oauth_clients).values(
                organization_id=server.organization_id, mcp_server_id=server.server_id, client_id=client_id, **read
            )
            await connection.execute(statement.on_conflict_do_update(constraint=oauth_clients.primary_key, set_=read))

    async def _post(
        self,
        site: Site,
        parameters: Parameters,
        authorization: str | None,
        now: Millis,
        answer: Callable[[_Server, _Request], OAuthAnswer],
    ) -> OAuthAnswer:
        flaw = _flaw(parameters)
        if flaw is not None:
            return _refused(flaw)
        request = _Request("POST", parameters, authorization)
        async with self._database.transaction(site.server.key.organization_id) as connection:
            return await self._served(connection, site, now, lambda server: answer(server, request))

    async def _served(
        self,
        connection: AsyncConnection,
        site: Site,
        now: Millis,
        work: Callable[[_Server], _T],
        *,
        begun_at: Millis | None = None,
    ) -> _T:
        begun_at = now if begun_at is None else begun_at
        return await connection.run_sync(lambda inner: work(_Server(inner, site, self._ids, now, begun_at)))


# -------------------------------------------------------------------------------------------- what Authlib asks


class _Request(OAuth2Request):
    """What was sent, in the form that Authlib reads. A parameter without a value is none (RFC 6749 section 3.1)."""

    def __init__(self, method: str, parameters: Parameters, authorization: str | None = None) -> None:
        # Authlib refuses http. Whether this came by it is the gate's business.
        super().__init__(method, "https://host.invalid/")
        self.payload = BasicOAuth2Payload({name: value for name, value in parameters if value})
        basic = _basic(authorization or "")
        self.has_header = basic is not None
        self.headers = {"Authorization": basic} if basic else {}

    @property
    def form(self) -> Mapping[str, str]:
        data: Mapping[str, str] = self.payload.data
        return data


@dataclass(frozen=True, slots=True)
class _KnownClient:
    """A client's row. The methods are those that Authlib calls."""

    client_id: str
    client: Client
    secret_hash: bytes | None
    known_at: Millis
    last_used_at: Millis | None

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        return self.client.redirect_uris[0] if len(self.client.redirect_uris) == 1 else None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return may_redirect(redirect_uri, self.client.redirect_uris)

    def get_allowed_scope(self, scope: str | None) -> str | None:
        return granted_scope(scope)

    def check_client_secret(self, secret: str) -> bool:
        return self.secret_hash is not None and hmac.compare_digest(self.secret_hash, hash_of(secret))

    def check_endpoint_auth_method(self, method: str, _: str) -> bool:
        # Many who have a secret send it in the other of the two ways than they said.
        return (method == "none") == (self.client.auth_method == "none")

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.client.grant_types


@dataclass(frozen=True, slots=True)
class _Family:
    """A grant, whose row is held."""

    grant_id: str
    client_id: str
    user_id: str
    scope: str
    has_ended: bool


@dataclass(frozen=True, slots=True)
class _Issued:
    """A code or token of a family. The methods are those that Authlib calls."""

    family: _Family
    column: Column[bytes]
    hash: bytes
    redirect_uri: str | None = None
    code_challenge: str = ""

    def get_redirect_uri(self) -> str | None:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.family.scope

    def check_client(self, client: _KnownClient) -> bool:
        return client.client_id == self.family.client_id


class _Checks:
    """What Authlib leaves open: PKCE by S256 always (RFC 7636), and whom the tokens are for (RFC 8707)."""

    def __call__(self, grant: _CodeGrant) -> None:
        grant.register_hook("after_validate_authorization_request_payload", self._asked)
        grant.register_hook("after_validate_token_request", self._redeemed)

    def _asked(self, grant: _CodeGrant, _: object) -> None:
        asked = grant.request.payload.data
        if asked.get("response_mode", "query") != "query":
            raise InvalidRequestError("Answers are given in the query: leave out response_mode.")
        if asked.get("code_challenge_method") != "S256" or not is_challenge(asked.get("code_challenge")):
            raise InvalidRequestError("PKCE is needed: send code_challenge, with code_challenge_method=S256.")
        grant.server.check_resource(grant.request)

    def _redeemed(self, grant: _CodeGrant, _: object) -> None:
        verifier = grant.request.form.get("code_verifier")
        if verifier is None:
            raise InvalidRequestError("PKCE is needed: send code_verifier.")
        if not proves(verifier, grant.request.authorization_code.code_challenge):
            raise InvalidGrantError("The code_verifier is not the one of this code.")
        grant.server.check_resource(grant.request)


class _CodeGrant(grants.AuthorizationCodeGrant):
    """RFC 6749 section 4.1."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS
    server: _Server

    def create_authorization_response(self, redirect_uri: str, grant_user: UserId | None) -> Any:
        if grant_user is None:
            raise AccessDeniedError(redirect_uri=redirect_uri)
        code = self.server.consented(self.request, grant_user)
        return self.server.sent_back(redirect_uri, [("code", code)], self.request.payload.state)

    def query_authorization_code(self, code: str, client: _KnownClient) -> _Issued | None:
        return self.server.redeemed(hash_of(code), client)

    def delete_authorization_code(self, authorization_code: _Issued) -> None:
        self.server.use_up(authorization_code, _CODE.used_at)

    def authenticate_user(self, authorization_code: _Issued) -> str:
        return authorization_code.family.user_id


class _RefreshGrant(grants.RefreshTokenGrant):
    """RFC 6749 section 6."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True
    server: _Server

    def validate_token_request(self) -> None:
        super().validate_token_request()
        scope = self.request.payload.scope
        if scope is not None and granted_scope(scope) is None:
            raise InvalidScopeError
        self.server.check_resource(self.request)

    def authenticate_refresh_token(self, refresh_token: str) -> _Issued | None:
        return self.server.refreshed(hash_of(refresh_token), self.request.client)

    def revoke_old_credential(self, refresh_token: _Issued) -> None:
        self.server.use_up(refresh_token, _REFRESH.rotated_at)

    def authenticate_user(self, refresh_token: _Issued) -> str:
        return refresh_token.family.user_id


class _Revocation(RevocationEndpoint):
    """RFC 7009. What is unknown here is no less gone."""

    CLIENT_AUTH_METHODS = AUTH_METHODS
    server: _Server

    def query_token(self, token_string: str, _: str | None) -> _Issued | None:
        hash = hash_of(token_string)
        for column in (_REFRESH.token_hash, _ACCESS.token_hash):
            family = self.server.family_of(column, hash)
            if family is not None:
                return _Issued(family, column, hash)
        return None

    def revoke_token(self, token: _Issued, _: _Request) -> None:
        if token.column is _REFRESH.token_hash:
            self.server.end(token.family)
        else:
            self.server.end_access_token(token.hash)


class _Server(AuthlibServer):
    """The authorization server of one site, for one request, within one transaction."""

    def __init__(self, connection: Connection, site: Site, ids: Ids, now: Millis, begun_at: Millis) -> None:
        super().__init__()
        self._connection = connection
        self._site = site
        self._key = site.server.key
        self._ids = ids
        self._now = now
        self._begun_at = begun_at
        self._clients: dict[str, _KnownClient | None] = {}
        self.register_grant(_CodeGrant, [_Checks()])
        self.register_grant(_RefreshGrant)
        self.register_endpoint(_Revocation)

    # What Authlib wants to be told

    def create_oauth2_request(self, request: _Request) -> _Request:
        return request

    def send_signal(self, name: str, *_: Any, **__: Any) -> None:
        pass

    def handle_response(self, status: int, body: Any, headers: Sequence[tuple[str, str]]) -> OAuthAnswer:
        return OAuthAnswer(status, body, dict(headers).get("Location"))

    def handle_error_response(self, request: _Request, error: OAuth2Error) -> OAuthAnswer:
        body = dict(error.get_body())
        if error.redirect_uri:
            body.pop("state", None)
            return _answer(
                self.handle_response(*self.sent_back(error.redirect_uri, list(body.items()), request.payload.state))
            )
        if not body.get("error_description") or isinstance(error, InvalidClientError):
            body["error_description"] = _PROBLEMS.get(body["error"], "This cannot be done.")
        if isinstance(error, InvalidClientError):
            return OAuthAnswer(401, body, challenge='Basic realm="cairn"' if request.has_header else None)
        return OAuthAnswer(400, body)

    def query_client(self, client_id: str) -> _KnownClient | None:
        if client_id not in self._clients:
            self._clients[client_id] = self._read_client(client_id)
        return self._clients[client_id]

    def generate_token(
        self,
        grant_type: str,
        client: _KnownClient,
        user: Any = None,
        scope: str | None = None,
        expires_in: int | None = None,
        include_refresh_token: bool = True,
    ) -> dict[str, Any]:
        token = {
            "access_token": self._ids.token(),
            "token_type": "Bearer",
            "expires_in": ACCESS_LIFETIME // 1000,
            "scope": granted_scope(scope),
        }
        return {**token, **({"refresh_token": self._ids.token("cairn_refresh")} if include_refresh_token else {})}

    def save_token(self, token: Mapping[str, Any], request: _Request) -> None:
        source: _Issued = request.authorization_code or request.refresh_token
        family = source.family
        rows = {"organization_id": self._key.organization_id, "grant_id": family.grant_id, "created_at": self._now}
        for table, grant_id, expires_at in (
            (access_tokens, _ACCESS.grant_id, _ACCESS.expires_at),
            (oauth_refresh_tokens, _REFRESH.grant_id, _REFRESH.expires_at),
        ):
            self._connection.execute(
                delete(table).where(
                    table.c.organization_id == self._key.organization_id,
                    grant_id == family.grant_id,
                    expires_at <= self._now,
                )
            )
        self._connection.execute(
            insert(access_tokens).values(
                **rows,
                token_hash=hash_of(token["access_token"]),
                mcp_server_id=self._key.server_id,
                mcp_server_user_id=family.user_id,
                scope=token["scope"],
                expires_at=self._now + ACCESS_LIFETIME,
            )
        )
        lifetime = REFRESH_LIFETIME if "refresh_token" in token else ACCESS_LIFETIME
        self._connection.execute(
            update(oauth_grants)
            .where(_GRANT.organization_id == self._key.organization_id, _GRANT.id == family.grant_id)
            .values(good_until=self._now + lifetime)
        )
        if "refresh_token" in token:
            self._connection.execute(
                insert(oauth_refresh_tokens).values(
                    **rows, token_hash=hash_of(token["refresh_token"]), expires_at=self._now + REFRESH_LIFETIME
                )
            )

    # A sign-in's beginning and end

    def begin(self, request: _Request) -> OAuthAnswer | SignInState:
        """What a client asks, as it is shown to the person; or why it is not asked."""
        asking = self._asking(request)
        if isinstance(asking, OAuthAnswer):
            return asking
        client, redirect_uri = asking
        try:
            if request.payload.response_type is None:
                raise InvalidRequestError("Send response_type=code.", redirect_uri=redirect_uri)
            if request.payload.response_type != "code":
                problem = "Only response_type=code is served."
                raise OAuth2Error(problem, error="unsupported_response_type", redirect_uri=redirect_uri)
            self.get_consent_grant(request)
        except OAuth2Error as error:
            return self.handle_error_response(request, error)
        return SignInState.asked(AskingClient.of(client.client.name, redirect_uri, client.client_id))

    def finish(self, request: _Request, user: UserId | None) -> OAuthAnswer:
        """The way back to the client, which must still be one."""
        asking = self._asking(request)
        if isinstance(asking, OAuthAnswer):
            return asking
        grant = self.get_authorization_grant(request)
        return _answer(self.create_authorization_response(request, grant_user=user, grant=grant))

    def _asking(self, request: _Request) -> OAuthAnswer | tuple[_KnownClient, str]:
        """Who asks, and where to answer. Where that is not safe: an answer without a location."""
        client_id = request.payload.client_id
        client = None if client_id is None else self.query_client(client_id)
        if client is None or not is_known(client.client_id, client.known_at, client.last_used_at, self._begun_at):
            return _refused(
                "This client is not known here, or no longer: remove this server from it, and add it again."
            )
        redirect_uri = request.payload.redirect_uri or client.get_default_redirect_uri()
        if redirect_uri is None or not client.check_redirect_uri(redirect_uri):
            return _refused("This client has not registered the address where it wants the answer: update it.")
        return client, redirect_uri

    def consented(self, request: _Request, user: UserId) -> str:
        """Records what the person let the client do, and returns the code for it."""
        client: _KnownClient = request.client
        asked = request.payload.data
        code, grant_id = self._ids.token("cairn_code"), self._ids.new("grant")
        self._forget_old_grants()
        self._connection.execute(
            insert(oauth_grants).values(
                organization_id=self._key.organization_id,
                id=grant_id,
                mcp_server_id=self._key.server_id,
                mcp_server_user_id=user,
                client_id=client.client_id,
                client_name=client.client.name,
                scope=request.scope,
                created_at=self._now,
                good_until=self._now + CODE_LIFETIME,
            )
        )
        self._connection.execute(
            insert(oauth_codes).values(
                organization_id=self._key.organization_id,
                code_hash=hash_of(code),
                grant_id=grant_id,
                redirect_uri=asked.get("redirect_uri"),
                code_challenge=asked["code_challenge"],
                expires_at=self._now + CODE_LIFETIME,
            )
        )
        self._connection.execute(
            update(oauth_clients).where(_client(self._key, client.client_id)).values(last_used_at=self._now)
        )
        return code

    def sent_back(
        self, redirect_uri: str, parameters: Sequence[tuple[str, str]], state: str | None
    ) -> tuple[int, Mapping[str, Any], Sequence[tuple[str, str]]]:
        """The way back to the client. RFC 9207: it says who answers. 303, as it may follow a form."""
        told = [*parameters, *([("state", state)] if state else []), ("iss", self._site.issuer)]
        return 303, {}, [("Location", redirect(redirect_uri, told))]

    # Families

    def family_of(self, column: Column[bytes], hash: bytes) -> _Family | None:
        """The family of a code or token, on this server, held from now on."""
        table = column.table
        grant_id = select(table.c.grant_id).where(table.c.organization_id == self._key.organization_id, column == hash)
        row = self._connection.execute(
            select(_GRANT.id, _GRANT.client_id, _GRANT.mcp_server_user_id, _GRANT.scope, _GRANT.revoked_at)
            .where(_here(_GRANT, self._key), _GRANT.id == grant_id.scalar_subquery())
            .with_for_update()
        ).one_or_none()
        if row is None:
            return None
        return _Family(row.id, row.client_id, row.mcp_server_user_id, row.scope, row.revoked_at is not None)

    def redeemed(self, hash: bytes, client: _KnownClient) -> _Issued | None:
        """The code, where it is good for tokens. One that comes again ends its family."""
        family = self._live_family(_CODE.code_hash, hash, client)
        if family is None:
            return None
        # Read once the family is held: it says what the one before has done.
        row = self._connection.execute(
            select(_CODE.redirect_uri, _CODE.code_challenge, _CODE.expires_at, _CODE.used_at).where(
                _CODE.organization_id == self._key.organization_id, _CODE.code_hash == hash
            )
        ).one()
        match use_of_code(row.used_at, row.expires_at, self._now):
            case Use.FIRST:
                return _Issued(family, _CODE.code_hash, hash, row.redirect_uri, row.code_challenge)
            case Use.REUSED:
                self.end(family)
        return None

    def refreshed(self, hash: bytes, client: _KnownClient) -> _Issued | None:
        """The refresh token, where it is good for tokens. One that comes again, and late, ends its family."""
        family = self._live_family(_REFRESH.token_hash, hash, client)
        if family is None:
            return None
        row = self._connection.execute(
            select(_REFRESH.expires_at, _REFRESH.rotated_at).where(
                _REFRESH.organization_id == self._key.organization_id, _REFRESH.token_hash == hash
            )
        ).one_or_none()
        match None if row is None else use_of_refresh_token(row.rotated_at, row.expires_at, self._now):
            case Use.FIRST | Use.RETRIED:
                return _Issued(family, _REFRESH.token_hash, hash)
            case Use.REUSED:
                self.end(family)
        return None

    def _live_family(self, column: Column[bytes], hash: bytes, client: _KnownClient) -> _Family | None:
        family = self.family_of(column, hash)
        return None if family is None or family.has_ended or family.client_id != client.client_id else family

    def use_up(self, issued: _Issued, used_at: Column[int]) -> None:
        """It was good for tokens; `used_at` is the column that says since when."""
        self._connection.execute(
            update(issued.column.table)
            .where(issued.column.table.c.organization_id == self._key.organization_id, issued.column == issued.hash)
            .values({used_at: func.coalesce(used_at, self._now)})
        )

    def end(self, family: _Family) -> None:
        """Nothing that was issued in the family is good any more, and nothing will be issued."""
        organization_id = self._key.organization_id
        self._connection.execute(
            update(oauth_grants)
            .where(_GRANT.organization_id == organization_id, _GRANT.id == family.grant_id)
            .values(revoked_at=func.coalesce(_GRANT.revoked_at, self._now))
        )
        for table in (access_tokens, oauth_refresh_tokens):
            self._connection.execute(
                delete(table).where(table.c.organization_id == organization_id, table.c.grant_id == family.grant_id)
            )

    def end_access_token(self, hash: bytes) -> None:
        """The others of its family stay good."""
        self._connection.execute(
            delete(access_tokens).where(
                _ACCESS.organization_id == self._key.organization_id, _ACCESS.token_hash == hash
            )
        )

    def check_resource(self, request: _Request) -> None:
        """RFC 8707 section 2.

        Raises:
            OAuth2Error: `invalid_target`.
        """
        if not self._site.is_meant_by(request.payload.data.get("resource")):
            raise OAuth2Error(f"Tokens of this server are for {self._site.resource} only.", error="invalid_target")

    def _read_client(self, client_id: str) -> _KnownClient | None:
        row = self._connection.execute(
            select(_CLIENT.metadata, _CLIENT.secret_hash, _CLIENT.created_at, _CLIENT.last_used_at).where(
                _client(self._key, client_id)
            )
        ).one_or_none()
        if row is None:
            return None
        try:
            client = Client.registered(row.metadata)
        except ClientRefused:  # by rules that are newer than the registration
            return None
        return _KnownClient(client_id, client, row.secret_hash, row.created_at, row.last_used_at)

    def _forget_old_grants(self) -> None:
        """Those on this server of which nothing is good any more. What was revoked can be seen for a month."""
        # An hour more than needed: processes' clocks differ, and a token of the last moment may be in use elsewhere.
        lately, long_ago = self._now - ACCESS_LIFETIME, self._now - REFRESH_LIFETIME
        old = (
            select(_GRANT.id)
            .where(
                _here(_GRANT, self._key),
                _GRANT.good_until < lately,
                or_(_GRANT.revoked_at.is_(None), _GRANT.revoked_at < long_ago),
            )
            .order_by(_GRANT.good_until)
            .limit(_MAX_SWEPT)
            .with_for_update(skip_locked=True)
        )
        self._connection.execute(
            delete(oauth_grants).where(_GRANT.organization_id == self._key.organization_id, _GRANT.id.in_(old))
        )


# ---------------------------------------------------------------------------------------------- rows and texts


async def _is_there(connection: AsyncConnection, server: ServerKey, user: UserId) -> bool:
    """Whether there is such a person, who from now on stays until this transaction ends."""
    found = select(mcp_server_users.c.id).where(
        mcp_server_users.c.organization_id == server.organization_id, mcp_server_users.c.id == user
    )
    return await connection.scalar(found.with_for_update(read=True, key_share=True)) is not None


async def _forget_unused_clients(connection: AsyncConnection, server: ServerKey, now: Millis) -> None:
    """Those whose time is over, and that have no sign-in under way either."""
    unused = (
        select(_CLIENT.client_id)
        .where(
            _here(_CLIENT, server),
            _CLIENT.last_used_at.is_(None),
            _CLIENT.created_at < now - UNUSED_LIFETIME - SIGN_IN_LIFETIME,
        )
        .limit(_MAX_SWEPT)
        .with_for_update(skip_locked=True)
    )
    await connection.execute(delete(oauth_clients).where(_here(_CLIENT, server), _CLIENT.client_id.in_(unused)))


def _here(columns: Any, server: ServerKey) -> ColumnElement[bool]:
    return and_(columns.organization_id == server.organization_id, columns.mcp_server_id == server.server_id)


def _client(server: ServerKey, client_id: str) -> ColumnElement[bool]:
    return and_(_here(_CLIENT, server), _CLIENT.client_id == client_id)


def _flaw(parameters: Parameters) -> str | None:
    """What keeps these from being looked at, in ASCII."""
    names = [name for name, _ in parameters]
    if len(set(names)) < len(names):
        return "A parameter came twice: send each of them once."
    if any("\0" in text for parameter in parameters for text in parameter):
        return "A parameter holds a character that no parameter has."
    return None


def _basic(authorization: str) -> str | None:
    """The header as Authlib can read it; empty where nobody can, and None where it is of another scheme."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = unquote(base64.b64decode(encoded.strip(), validate=True).decode())
    except ValueError:
        return ""
    return f"Basic {encoded.strip()}" if text and "\0" not in text else ""


def _refused(problem: str, error: str = "invalid_request") -> OAuthAnswer:
    return OAuthAnswer(400, {"error": error, "error_description": problem})


def _answer(answer: Any) -> OAuthAnswer:
    """What Authlib hands on is what `_Server` made."""
    made: OAuthAnswer = answer
    return made
