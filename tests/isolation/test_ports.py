"""Every method of every port that PostgreSQL stands behind, asked by names of another organisation's."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

import adapters.postgres
from application import ports
from application.ports import Cohort, Measures, OidcProvider, Placement, SignInKey
from domain.progress import EventKind, Merge, Progress, ProgressEvent, ProgressKey, Revised, Status, Told, Transition
from domain.publishing import Signature
from domain.sign_in import IdentityKey, SignInState
from domain.tenancy import AuthMode, Caller, Millis, Server, ServerId, ServerKey, StepId, UserId, WalkthroughId
from domain.walkthrough import Publication, PublishPolicy, VersionKey
from tests.calls import record, tool_call
from tests.contracts.test_authorization import CHALLENGE, REDIRECT, VERIFIER
from tests.isolation.tenants import ISSUER, NOW, OF_A_SERVER, SHARED_EMAIL, SHARED_KEY, Names, Stores, sha256
from tests.isolation.walk import Walk, differ_in_time

pytestmark = pytest.mark.usefixtures("first_wall_alone")

Probe = Callable[[Stores, Names], Awaitable[Any]]

_NEW = b"\x07" * 32
_SIGNED = Signature("author@example.com", NOW)
_EVERYTHING = Cohort(None, None, None, None)
_MEASURES = Measures(NOW, Millis(1), Millis(1), Millis(1), 10)
_PROVIDER = OidcProvider(ISSUER, "cairn", "secret", "Log in")
_ASKED = {
    "response_type": "code",
    "redirect_uri": REDIRECT,
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}

# ------------------------------------------------------------------------------------- what takes more than a line


# Nobody looks a step up in what begins or merges: which it is was decided before, from the organisation's own content.
_STEP = StepId("stp_0000")
_PUBLISHED = Publication(2, PublishPolicy.OFFER, is_available=True)
_UNTAKEN = Publication(3, PublishPolicy.KEEP, is_available=True)  # a second server has published it once more


def _standing(n: Names, user_id: UserId, walkthrough_id: WalkthroughId | None = None) -> Progress:
    """Where everybody of `settle` stands who has begun a walkthrough: stuck at its second step."""
    return Progress(
        key=ProgressKey(n.organization_id, n.server_id, user_id, walkthrough_id or n.walkthrough_id),
        version=2,
        attempt=1,
        revision=3,
        status=Status.IN_PROGRESS,
        current_step_id=_STEP,
        carried=frozenset(),
        started_at=NOW,
        last_activity_at=NOW,
        completed_at=None,
    )


def _event(kind: EventKind, of: Progress, from_step: StepId | None, to_step: StepId | None) -> ProgressEvent:
    return ProgressEvent(of.revision, kind, 1, 2, from_step, to_step, None, None, NOW)


async def _stays(at: Stores, n: Names) -> bool:
    before = replace(_standing(n, n.user_id), current_step_id=n.step_id)
    after = replace(before, revision=4)
    event = _event(EventKind.RESUMED, after, _STEP, _STEP)
    return await at.world.progress.commit(Transition(before, after, (event,), Told.RESUMED), _PUBLISHED)


async def _begins(at: Stores, n: Names) -> bool:
    after = replace(_standing(n, n.user_id, n.untaken_id), version=1, revision=1)
    event = _event(EventKind.STARTED, after, None, _STEP)._replace(version=1)
    return await at.world.progress.commit(Transition(None, after, (event,), Told.STARTED), _UNTAKEN)


async def _merges(at: Stores, n: Names) -> UserId | None:
    theirs, own = _standing(n, n.visitor_id), _standing(n, n.user_id)
    after = replace(theirs, status=Status.MERGED, revision=4)
    end = _event(EventKind.MERGED, after, None, _STEP)
    merge = Merge(Revised(theirs, after, (end,)), Revised(own, own, ()))
    return await at.visitors.merge(n.server, n.visitor_id, n.user_id, [merge])


def _form(**fields: str) -> Sequence[tuple[str, str]]:
    return list(fields.items())


async def _asks(at: Stores, n: Names, client_id: str) -> Any:
    key = SignInKey(n.server, _NEW, _NEW)
    return await at.authorization.authorize(n.site, _form(client_id=client_id, **_ASKED), key, NOW)


async def _redeems(at: Stores, n: Names) -> Any:
    form = _form(
        grant_type="authorization_code",
        code=n.code,
        client_id=n.client_id,
        redirect_uri=REDIRECT,
        code_verifier=VERIFIER,
    )
    return await at.authorization.token(n.site, form, None, NOW)


async def _refreshes(at: Stores, n: Names) -> Any:
    form = _form(grant_type="refresh_token", refresh_token=n.refresh_token, client_id=n.client_id)
    return await at.authorization.token(n.site, form, None, NOW)


async def _keeps_document(at: Stores, n: Names) -> None:
    document = {"client_id": n.document_url, "client_name": "New", "redirect_uris": [REDIRECT]}
    await at.authorization.keep_document(n.site, n.document_url, document, NOW)


async def _calls(at: Stores, n: Names) -> None:
    call = tool_call(n.caller, walkthrough_id=n.walkthrough_id, step_id=n.step_id, created_at=NOW)
    await record(at.world.calls, call._replace(id=f"{call.id}-of-probe"))  # type: ignore[arg-type]


async def _creates_server(at: Stores, n: Names) -> None:
    key = ServerKey(n.organization_id, ServerId("srv_new"))
    await at.world.tenants.create_server(Server(key, "new", "New", AuthMode.ON_DEMAND), NOW)


async def _archives(at: Stores, n: Names) -> Any:
    return (await at.world.walkthroughs.change(n.organization_id, n.key, lambda it: it.archive(_SIGNED), NOW)).entry


async def _changes_and_places(at: Stores, n: Names) -> Any:
    placements = [Placement(n.server, 7)]
    archived = await at.world.walkthroughs.change(
        n.organization_id, n.key, lambda it: it.archive(_SIGNED), NOW, placements=placements
    )
    return archived.assignments


async def _begins_walkthrough(at: Stores, n: Names) -> Any:
    """One whose key may be another organisation's, with the id that another organisation's has."""
    begun = await at.world.walkthroughs.change(
        n.organization_id, n.key, lambda it: it.archive(_SIGNED), NOW, new_id=WalkthroughId("wlk_new")
    )
    return begun.entry


# ------------------------------------------------------------------------------------------------ the probes

PROBES: Mapping[str, Sequence[Probe]] = {
    "Catalogue.standings": [
        lambda at, n: at.world.catalogue.standings(n.caller),
        lambda at, n: at.world.catalogue.standings(Caller(n.server, None)),
        lambda at, n: at.world.catalogue.standings(Caller(n.server, n.visitor_id)),
    ],
    "Catalogue.matching": [
        lambda at, n: at.world.catalogue.matching(n.caller, n.walkthrough_id),
        lambda at, n: at.world.catalogue.matching(n.caller, n.key),
        lambda at, n: at.world.catalogue.matching(n.caller, n.title),
    ],
    "VersionLibrary.outlines": [
        lambda at, n: at.world.library.outlines([VersionKey(n.organization_id, n.walkthrough_id, 2)]),
    ],
    "VersionLibrary.step": [
        lambda at, n: at.world.library.step(VersionKey(n.organization_id, n.walkthrough_id, 2), n.step_id),
    ],
    "ProgressStore.commit": [_stays, _begins],
    "ProgressStore.is_noted": [
        lambda at, n: at.world.progress.is_noted(n.progress_key, 1, n.step_id, "alpha is hard"),
    ],
    "ProgressStore.events": [lambda at, n: at.world.progress.events(n.progress_key)],
    "CallLog.admit": [_calls],
    "TokenStore.bearer_of": [
        lambda at, n: at.world.tokens.bearer_of(n.server, sha256(n.token), NOW),
        lambda at, n: at.world.tokens.bearer_of(n.server, sha256(n.access_token), NOW),
    ],
    "TokenStore.issue": [lambda at, n: at.world.tokens.issue(n.server, n.email, UserId("usr_new"), _NEW, NOW)],
    "TokenStore.listed": [
        lambda at, n: at.world.tokens.listed(n.organization_id, n.server_id, n.user_id, NOW, 100),
        lambda at, n: at.world.tokens.listed(n.organization_id, n.server_id, None, NOW, 100),
        lambda at, n: at.world.tokens.listed(n.organization_id, None, n.user_id, NOW, 100),
        lambda at, n: at.world.tokens.listed(n.organization_id, None, None, NOW, 100),
    ],
    "TokenStore.revoke": [
        lambda at, n: at.world.tokens.revoke(n.server, sha256(n.token), NOW),
        lambda at, n: at.world.tokens.revoke(n.server, sha256(n.access_token), NOW),
        lambda at, n: at.world.tokens.revoke(n.server, sha256(n.refresh_token), NOW),
    ],
    "TokenStore.revoke_all_of": [lambda at, n: at.world.tokens.revoke_all_of(n.server, n.email, NOW)],
    "TokenStore.revoke_grant": [lambda at, n: at.world.tokens.revoke_grant(n.server, n.grant_id, NOW)],
    "TokenStore.revoke_client": [
        lambda at, n: at.world.tokens.revoke_client(n.server, n.client_id, NOW),
        lambda at, n: at.world.tokens.revoke_client(n.server, n.client_name, NOW),
    ],
    "AuthorizationServer.authorize": [
        lambda at, n: _asks(at, n, n.client_id),
        lambda at, n: _asks(at, n, n.document_url),
    ],
    "AuthorizationServer.finish": [
        lambda at, n: at.authorization.finish(n.site, n.request_key, n.user_id, NOW),
        lambda at, n: at.authorization.finish(n.site, n.request_key, None, NOW),
    ],
    "AuthorizationServer.token": [_redeems, _refreshes],
    "AuthorizationServer.revoke": [
        lambda at, n: at.authorization.revoke(n.site, _form(token=n.access_token, client_id=n.client_id), None, NOW),
        lambda at, n: at.authorization.revoke(n.site, _form(token=n.refresh_token, client_id=n.client_id), None, NOW),
    ],
    "AuthorizationServer.register": [
        lambda at, n: at.authorization.register(n.site, {"redirect_uris": [REDIRECT]}, NOW),
    ],
    "AuthorizationServer.wants_document": [
        lambda at, n: at.authorization.wants_document(n.site, n.document_url, NOW),
    ],
    "AuthorizationServer.keep_document": [
        _keeps_document,
        lambda at, n: at.authorization.keep_document(n.site, n.document_url, None, NOW),
    ],
    "SignInStore.begin_keeping": [
        lambda at, n: at.sign_ins.begin_keeping(
            SignInKey(n.server, _NEW, _NEW), n.visitor_id, SignInState.keeping(), NOW
        ),
    ],
    "SignInStore.read": [
        lambda at, n: at.sign_ins.read(n.request_key, NOW),
        lambda at, n: at.sign_ins.read(n.keeping_key, NOW),
    ],
    "SignInStore.change": [
        lambda at, n: at.sign_ins.change(n.request_key, SignInState.approve, NOW),
        lambda at, n: at.sign_ins.change(n.keeping_key, lambda state: state.send("a@example.com", _NEW, NOW), NOW),
    ],
    "People.person": [
        lambda at, n: at.people.person(n.organization_id, None, n.email, UserId("usr_new"), NOW),
        lambda at, n: at.people.person(
            n.organization_id, IdentityKey(ISSUER, n.subject), SHARED_EMAIL, UserId("usr_new"), NOW
        ),
    ],
    "VisitorStore.add": [lambda at, n: at.visitors.add(n.server, _NEW, UserId("usr_new"), NOW)],
    "VisitorStore.find": [lambda at, n: at.visitors.find(n.server, sha256(n.visitor))],
    "VisitorStore.merge": [_merges],
    "WalkthroughStore.read": [lambda at, n: at.world.walkthroughs.read(n.organization_id, n.key)],
    "WalkthroughStore.change": [_archives, _changes_and_places, _begins_walkthrough],
    "WalkthroughStore.version": [
        lambda at, n: at.world.walkthroughs.version(VersionKey(n.organization_id, n.walkthrough_id, 2)),
    ],
    "WalkthroughStore.ledger": [lambda at, n: at.world.walkthroughs.ledger(n.organization_id, n.walkthrough_id)],
    "WalkthroughStore.people": [lambda at, n: at.world.walkthroughs.people(n.organization_id, n.walkthrough_id)],
    "WalkthroughStore.standings": [
        lambda at, n: at.world.walkthroughs.standings(n.organization_id, n.walkthrough_id),
    ],
    "AssignmentStore.assign": [
        lambda at, n: at.world.assignments.assign(n.organization_id, n.key, [Placement(n.server, 7)], NOW),
    ],
    "AssignmentStore.unassign": [
        lambda at, n: at.world.assignments.unassign(n.organization_id, n.key, [n.server]),
    ],
    "AssignmentStore.set_enabled": [
        lambda at, n: at.world.assignments.set_enabled(n.organization_id, n.key, [n.server], is_enabled=False),
    ],
    "AssignmentStore.order": [lambda at, n: at.world.assignments.order(n.server, [SHARED_KEY, n.key])],
    "TenantStore.create_server": [_creates_server],
    "TenantStore.servers": [lambda at, n: at.world.tenants.servers(n.organization_id)],
    "TenantStore.set_auth_mode": [lambda at, n: at.world.tenants.set_auth_mode(n.server, AuthMode.ON_CONNECT)],
    "TenantStore.set_provider": [lambda at, n: at.world.tenants.set_provider(n.organization_id, _PROVIDER, NOW)],
    "TenantStore.provider": [lambda at, n: at.world.tenants.provider(n.organization_id)],
    "PersonalDataStore.people": [
        lambda at, n: at.personal.people(n.organization_id, n.server_id, None, 100),
        lambda at, n: at.personal.people(n.organization_id, None, None, 100),
    ],
    "PersonalDataStore.find": [
        lambda at, n: at.personal.find(n.organization_id, n.email),
        lambda at, n: at.personal.find(n.organization_id, n.user_id),
    ],
    "PersonalDataStore.record": [lambda at, n: at.personal.record(n.organization_id, n.user_id)],
    "PersonalDataStore.calls": [lambda at, n: at.personal.calls(n.organization_id, [n.user_id], Millis(0))],
    "PersonalDataStore.forget_calls": [
        lambda at, n: at.personal.forget_calls(n.organization_id, [n.user_id], Millis(0)),
    ],
    "PersonalDataStore.erase": [lambda at, n: at.personal.erase(n.organization_id, [n.user_id], Millis(0))],
    "Funnels.subject": [lambda at, n: at.world.funnels.subject(n.organization_id, n.key)],
    "Funnels.counts": [
        lambda at, n: at.world.funnels.counts(n.organization_id, n.walkthrough_id, _EVERYTHING, _MEASURES),
        lambda at, n: at.world.funnels.counts(
            n.organization_id, n.walkthrough_id, replace(_EVERYTHING, server_id=n.server_id), _MEASURES
        ),
    ],
}

NAMES_NO_TENANT = {
    "CallLog.drain": "it waits for what was handed in, and hands nothing out",
    "ServerDirectory.server_at": "it tells whose a host name is, before anybody's organisation is known",
    "TenantStore.create_organization": "it makes one; slugs are taken for all of them at once",
    "TenantStore.organization": "it tells whose a slug is, to the operator of all of them",
    "TenantStore.server": "as it is for `organization`; `Tenancy.server` refuses another organisation's",
}
# What one's own person, client or call is, when nobody's names are in it: it is made, or recorded, or over.
LEAVE_SOMETHING = {
    "CallLog.admit",
    "TokenStore.issue",
    "AuthorizationServer.finish",
    "AuthorizationServer.keep_document",
    "People.person",
    "VisitorStore.add",
    "WalkthroughStore.change",
}
# Whose a visitor is was found out before, by the secret; and the merge looks again.
_FOR_ANY_VISITOR = "SignInStore.begin_keeping"

_EACH = [pytest.param(name, probe, id=f"{name}-{n}") for name, them in PROBES.items() for n, probe in enumerate(them)]


def test_every_method_of_every_port_has_a_probe_or_names_no_tenant() -> None:
    modules = [
        importlib.import_module(f"adapters.postgres.{each.name}")
        for each in pkgutil.iter_modules(adapters.postgres.__path__)
    ]
    stores = {name for module in modules for name in vars(module) if name.startswith("Postgres")}
    methods = {
        f"{port}.{method}"
        for port in (store.removeprefix("Postgres") for store in stores)
        for method, _ in inspect.getmembers(getattr(ports, port), inspect.isfunction)
        if not method.startswith("_")
    }
    assert PROBES.keys() | NAMES_NO_TENANT.keys() == methods
    assert PROBES.keys() & NAMES_NO_TENANT.keys() == set()


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize(("name", "probe"), _EACH)
async def test_another_organisations_names_are_as_good_as_nobodys(
    stores: Stores, walk: Walk, name: str, probe: Probe
) -> None:
    of_a_server = OF_A_SERVER - {"visitor_id"} if name == _FOR_ANY_VISITOR else OF_A_SERVER
    await walk.probe(lambda n: probe(stores, n), changes=name in LEAVE_SOMETHING, of_a_server=of_a_server)


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize(("name", "probe"), _EACH)
async def test_another_organisations_names_take_as_long_as_nobodys(
    stores: Stores, walk: Walk, name: str, probe: Probe
) -> None:
    await walk.takes_as_long(lambda n: probe(stores, n))


# ---------------------------------------------------------------------------------------------- the walk itself


async def _reads_by_host_name(at: Stores, n: Names) -> Any:
    return await at.world.tenants.server(n.slug)


async def _writes_by_host_name(at: Stores, n: Names) -> None:
    found = await at.world.tenants.server(n.slug)
    if found is not None:
        await at.world.tokens.issue(found.server.key, SHARED_EMAIL, UserId("usr_new"), _NEW, NOW)


async def _asks_twice_if_there_is_one(at: Stores, n: Names) -> None:
    if await at.world.tenants.organization(n.organization_id) is None and await at.world.tenants.server(n.slug):
        await at.world.tenants.servers(n.organization_id)


@pytest.mark.parametrize("leak", [_reads_by_host_name, _writes_by_host_name, _asks_twice_if_there_is_one])
async def test_the_walk_sees_what_is_answered_written_or_asked_for_another_organisation(
    stores: Stores, walk: Walk, leak: Probe
) -> None:
    with pytest.raises(AssertionError, match="slug"):
        await walk.probe(lambda n: leak(stores, n), changes=True)


async def test_the_clock_sees_work_done_twice(stores: Stores, walk: Walk) -> None:
    async def once() -> None:
        await stores.world.tokens.bearer_of(walk.home.server, _NEW, NOW)

    async def twice() -> None:
        await once()
        await once()

    assert await differ_in_time(once, twice)
    assert not await differ_in_time(once, once)


@pytest.mark.promise("tenant.isolation")
async def test_what_is_kept_in_memory_for_one_is_found_by_nobody_else(stores: Stores, walk: Walk) -> None:
    """The process remembers content and hosts; both are asked for by one organisation, and then by the other."""
    home, foreign = walk.home, walk.foreign
    theirs = VersionKey(foreign.organization_id, foreign.walkthrough_id, 2)
    mixed = VersionKey(home.organization_id, foreign.walkthrough_id, 2)
    for _ in range(2):
        assert (await stores.world.library.outlines([theirs, mixed])).keys() == {theirs}
        assert await stores.world.library.step(theirs, foreign.step_id) is not None
        assert await stores.world.library.step(mixed, foreign.step_id) is None
        for names in (foreign, home):
            server = await stores.world.servers.server_at(slug=names.slug, custom_domain=None)
            assert server is not None
            assert server.key == names.server
            assert await stores.world.servers.server_at(slug=None, custom_domain=names.slug) is None
