"""Signing in: the pages between an MCP client's question and its answer.

Each method but `begin_keeping` takes the page that a person is on, and does one thing that they asked for there. Where
the browser is to go elsewhere then, that is returned; None: to the page that the sign-in's stage asks for.

No message is sent and no provider is asked within a transaction, and none before what makes it due is stored.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from application.limits import Limit, network_of
from application.ports import (
    AuthorizationServer,
    Clock,
    IdentityProvider,
    Ids,
    Mailer,
    Parameters,
    People,
    RateLimiter,
    SignInKey,
    SignInStore,
    SignInUnderWay,
    TenantStore,
)
from application.visitors import Visitors
from domain.errors import InvalidValue, NotFound, SignInFailed, SignInOver
from domain.oauth import Site
from domain.sign_in import EMAILED_CODE_LIFETIME, AskingClient, IdentityKey, OidcProvider, SignInState, Stage
from domain.tenancy import UserId, email_address, hash_of

# What mail programs make links of. A client names itself, and anybody can be a client.
_MAKES_LINKS = re.compile(r"[./:@\\]+")


class SignInOutcome(StrEnum):
    """What may come of what somebody does on a page: to be counted, by nothing else than this."""

    CODE_SENT = "code_sent"
    CODE_NOT_SENT = "code_not_sent"
    CODE_WRONG = "code_wrong"
    PROVIDER_FAILED = "provider_failed"
    DENIED = "denied"
    SIGNED_IN = "signed_in"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of one sign-in, as it lies open in a browser: its site, and the two secrets that name the sign-in.

    `id` is in the page's address; `browser` is the browser's own, and in no address.
    """

    site: Site
    id: str
    browser: str

    @property
    def key(self) -> SignInKey:
        """What the sign-in is stored by."""
        return SignInKey.of(self.site.server.key, self.id, self.browser)

    @property
    def return_to(self) -> str:
        """Where the provider sends the browser back to: one address for a whole site, to be registered there."""
        return f"{self.site.origin}/sign-in/callback"

    def hash_of_code(self, code: str) -> bytes:
        """A code as it is stored. Without the secrets it cannot be found by trying all there are."""
        return hash_of("\n".join((self.id, self.browser, code)))

    def secret(self, purpose: str, state: str) -> str:
        """A secret for one way to the provider and back, which is stored nowhere: this browser's makes it again."""
        made = hmac.digest(self.browser.encode(), f"{purpose}\n{state}".encode(), "sha256")
        return base64.urlsafe_b64encode(made).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class View:
    """What a page of a sign-in shows."""

    state: SignInState
    provider_name: str | None
    """The organisation's own provider, where it has one."""
    offers_codes: bool
    """Whether they may sign in by a code."""
    can_mail: bool
    """Whether this service can send one."""
    where_mail_is: str | None
    """Where messages are found, if that is not a mailbox."""


class SignIn:
    """Lets people say who they are."""

    def __init__(
        self,
        sign_ins: SignInStore,
        people: People,
        tenants: TenantStore,
        server: AuthorizationServer,
        identity_provider: IdentityProvider,
        visitors: Visitors,
        mailer: Mailer | None,
        limits: RateLimiter,
        ids: Ids,
        clock: Clock,
        count: Callable[[SignInOutcome], None] = lambda outcome: None,
    ) -> None:
        self._sign_ins = sign_ins
        self._people = people
        self._tenants = tenants
        self._server = server
        self._identity_provider = identity_provider
        self._visitors = visitors
        self._mailer = mailer
        self._limits = limits
        self._ids = ids
        self._clock = clock
        self._count = count

    async def begin_keeping(self, site: Site, visitor: UserId, id: str, browser: str, address: str) -> None:
        """Begins a sign-in for a visitor who keeps their progress; `id` and `browser` as in `Page`.

        Raises:
            TooManyRequests: when too many were begun from the network of `address`.
        """
        await self._limits.hit(Limit.SIGN_INS_PER_NETWORK, network_of(address))
        key = Page(site, id, browser).key
        await self._sign_ins.begin_keeping(key, visitor, SignInState.keeping(), self._clock.now())

    async def view(self, page: Page) -> View:
        """What to show.

        Raises:
            SignInOver: as every method here, when there is no such sign-in under way in this browser.
        """
        found = await self._read(page)
        provider = await self._provider(page)
        return View(
            found.state,
            provider.name if provider else None,
            _offers_codes(found.state, provider),
            self._mailer is not None,
            self._mailer.where if self._mailer else None,
        )

    async def approve(self, page: Page) -> None:
        """Lets the client act for them, once it is known who they are."""
        await self._change(page, SignInState.approve)

    async def deny(self, page: Page) -> str | None:
        """Sends the browser back to the client, with a no. A visitor says no by leaving."""
        found = await self._read(page)
        if found.state.client is None:
            return None
        return await self._back(page, None)

    async def send_code(self, page: Page, email: str | None, address: str) -> None:
        """Sends a code to an e-mail address; None: to the one that was named before. `address` is the browser's.

        Raises:
            TooManyRequests: when too many were sent to that address, or for that network.
        """
        found = await self._read(page)
        to = email if email is not None else found.state.email
        if to is None or self._mailer is None or not _offers_codes(found.state, await self._provider(page)):
            return
        if found.state.may_send and (mailbox := _mailbox(to)) is not None:
            organization_id, network = page.site.server.key.organization_id, network_of(address)
            await self._limits.hit(Limit.CODES_PER_NETWORK, network)
            # By network too, and first: or whoever knows an address keeps its owner out for as long as they like.
            await self._limits.hit(Limit.CODES_PER_ADDRESS_A_DAY, organization_id, mailbox, network)
            await self._limits.hit(Limit.CODES_PER_ADDRESS, organization_id, mailbox)
        code = self._ids.code()
        code_hash, now = page.hash_of_code(code), self._clock.now()
        state = await self._change(page, lambda state: state.send(to, code_hash, now))
        if state.code is None or state.code.code_hash != code_hash or state.email is None:
            return
        is_sent = await self._mailer.send(state.email, *_message(page.site.server.name, state.client, code))
        self._count(SignInOutcome.CODE_SENT if is_sent else SignInOutcome.CODE_NOT_SENT)
        if not is_sent:
            await self._change(page, lambda state: state.unsent(code_hash))

    async def choose_again(self, page: Page) -> None:
        """Goes back to the question who they are."""
        await self._change(page, SignInState.choose_again)

    async def try_code(self, page: Page, code: str, address: str) -> str | None:
        """Tries a code. However it ends, the try is counted before this returns.

        Raises:
            TooManyRequests: when too many were tried from that network.
        """
        await self._read(page)
        await self._limits.hit(Limit.TRIES_PER_NETWORK, network_of(address))
        # As people copy them: with spaces around, or in the middle.
        code_hash, now = page.hash_of_code("".join(code.split())), self._clock.now()
        state = await self._change(page, lambda state: state.try_code(code_hash, now))
        if state.stage is Stage.CODE_SENT:
            self._count(SignInOutcome.CODE_WRONG)
        return await self.go_on(page)

    async def leave(self, page: Page, address: str) -> str | None:
        """Sends the browser, whose network address is `address`, to the organisation's own provider.

        Raises:
            TooManyRequests: when too many went there from that network.
        """
        found = await self._read(page)
        provider = await self._provider(page)
        if provider is None:
            return None
        if found.state.may_leave:
            await self._limits.hit(Limit.PROVIDER_VISITS_PER_NETWORK, network_of(address))
        # The page's id in it, so that the way back leads to the page; the rest makes it good for one way only.
        parameter = f"{page.id}.{self._ids.token()}"
        away = hash_of(parameter)
        if not (await self._change(page, lambda state: state.leave(away))).is_awaiting(away):
            return None
        nonce, verifier = page.secret("nonce", parameter), page.secret("verifier", parameter)
        try:
            return await self._identity_provider.begin(provider, page.return_to, parameter, nonce, verifier)
        except SignInFailed as failure:
            problem = failure.problem
            self._count(SignInOutcome.PROVIDER_FAILED)
            await self._change(page, lambda state: state.failed(away, problem))
            return None

    async def come_back(self, site: Site, browser: str, parameters: Parameters) -> tuple[Page, str | None]:
        """Takes the provider's answer. Returns the page that it leads to, and as the others do."""
        states = [value for name, value in parameters if name == "state"]
        if len(states) != 1:
            raise SignInOver
        parameter, away = states[0], hash_of(states[0])
        page = Page(site, parameter.partition(".")[0], browser)
        found = await self._read(page)
        provider = await self._provider(page)
        if provider is None or not found.state.is_awaiting(away):
            return page, None  # an old way, or one that was gone already: the page says where they are
        nonce, verifier = page.secret("nonce", parameter), page.secret("verifier", parameter)
        try:
            proven = await self._identity_provider.complete(provider, page.return_to, parameters, nonce, verifier)
        except SignInFailed as failure:
            problem = failure.problem
            self._count(SignInOutcome.PROVIDER_FAILED)
            await self._change(page, lambda state: state.failed(away, problem))
            return page, None
        identity = IdentityKey(proven.issuer, proven.subject)
        email = proven.email if proven.is_email_verified else None
        await self._change(page, lambda state: state.come_back(away, identity, email))
        return page, await self.go_on(page)

    async def go_on(self, page: Page) -> str | None:
        """Goes as far as can be without asking: to the end, where it is known who they are. May be repeated."""
        found = await self._read(page)
        if found.state.stage is not Stage.IDENTIFIED or found.state.email is None:
            return None
        server = page.site.server.key
        user = await self._people.person(
            server.organization_id,
            found.state.proven,
            found.state.email,
            UserId(self._ids.new("usr")),
            self._clock.now(),
        )
        if found.visitor is None:
            return await self._back(page, user)
        try:
            by_them = await self._visitors.merge(server, found.visitor, user)
        except NotFound as error:
            raise SignInOver from error  # one of the two was erased meanwhile
        await self._change(page, lambda state: state.kept(by_them=by_them))
        self._count(SignInOutcome.KEPT)
        return None

    async def _back(self, page: Page, user: UserId | None) -> str:
        answer = await self._server.finish(page.site, page.key, user, self._clock.now())
        if answer.location is None:
            raise SignInOver
        self._count(SignInOutcome.DENIED if user is None else SignInOutcome.SIGNED_IN)
        return answer.location

    async def _read(self, page: Page) -> SignInUnderWay:
        found = await self._sign_ins.read(page.key, self._clock.now())
        if found is None:
            raise SignInOver
        return found

    async def _change(self, page: Page, decide: Callable[[SignInState], SignInState]) -> SignInState:
        changed = await self._sign_ins.change(page.key, decide, self._clock.now())
        if changed is None:
            raise SignInOver
        return changed.state

    async def _provider(self, page: Page) -> OidcProvider | None:
        return await self._tenants.provider(page.site.server.key.organization_id)


def _offers_codes(state: SignInState, provider: OidcProvider | None) -> bool:
    # Whom the provider names without a verified address has to prove one, whatever is offered to others.
    return provider is None or provider.offers_email_codes or state.proven is not None


def _mailbox(email: str) -> str | None:
    try:
        return email_address(email)
    except InvalidValue:
        return None


def _message(server_name: str, client: AskingClient | None, code: str) -> tuple[str, str]:
    """Subject and text. The code comes first: so it can be read in a phone's notification."""
    purpose = "keep your progress" if client is None else f"sign in from {_harmless(client.name)}"
    minutes = timedelta(milliseconds=EMAILED_CODE_LIFETIME) // timedelta(minutes=1)
    text = (
        f"{code}\n\n"
        f"This is your code for {server_name}, to {purpose}. Type it into the page that asks for it within {minutes} "
        "minutes, and tell it to nobody.\n\n"
        "If it was not you who asked for it, ignore this message: without the code nothing happens.\n"
    )
    return f"Your code for {server_name}", text


def _harmless(name: str) -> str:
    return " ".join(_MAKES_LINKS.sub(" ", name).split()) or "an app"
