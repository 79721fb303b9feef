"""What the ports of operators and authors promise, whichever implementation stands behind them."""

from __future__ import annotations

import pytest

from application.tenancy import Providers
from domain.errors import AlreadyExists, InvalidValue, NotFound
from domain.sign_in import OidcProvider
from domain.tenancy import AuthMode, Caller, OrganizationId, ServerId, ServerKey
from domain.walkthrough import PublishPolicy
from tests.worlds import World, manuscript


async def test_slugs_and_domains_are_taken_for_all_organisations_at_once(world: World) -> None:
    await world.server(custom_domain="guides.acme.com")
    await world.tenancy.create_organization("globex")
    with pytest.raises(AlreadyExists):
        await world.tenancy.create_organization("globex")
    with pytest.raises(AlreadyExists):
        await world.server("globex", "guides")
    with pytest.raises(AlreadyExists):
        await world.server("globex", "other", custom_domain="guides.acme.com")
    assert [each.server.slug for each in await world.tenancy.servers()] == ["guides"]


async def test_a_server_is_found_by_slug_or_by_its_custom_domain(world: World) -> None:
    server = await world.server(custom_domain="guides.acme.com")
    assert await world.servers.server_at(slug="guides", custom_domain=None) == server
    assert await world.servers.server_at(slug=None, custom_domain="guides.acme.com") == server
    assert await world.servers.server_at(slug="other", custom_domain="other.acme.com") is None


async def test_a_server_list_is_one_organisations_or_everybodys(world: World) -> None:
    await world.server()
    await world.server("globex", "labs")
    await world.publish("a")
    everybody = [(each.organization_slug, each.server.slug, each.assigned) for each in await world.tenancy.servers()]
    assert everybody == [("acme", "guides", 1), ("globex", "labs", 0)]
    assert [each.server.slug for each in await world.tenancy.servers("globex")] == ["labs"]
    with pytest.raises(NotFound):
        await world.tenancy.server("labs", "acme")


async def test_a_token_is_one_persons_on_one_server(world: World) -> None:
    guides, labs = await world.server(), await world.server(slug="labs")
    token = await world.identity.create_token(guides.key, "Ada@Example.com ")
    again = await world.identity.create_token(guides.key, "ada@example.com")
    on_labs = await world.identity.create_token(labs.key, "ada@example.com")
    person = await world.identity.bearer_of(guides.key, token)
    assert person is not None
    assert await world.identity.bearer_of(guides.key, again) == person
    assert await world.identity.bearer_of(labs.key, on_labs) == person
    assert await world.identity.bearer_of(labs.key, token) is None
    assert await world.identity.bearer_of(guides.key, "cairn_nonsense\ud800") is None


async def test_the_same_address_in_two_organisations_is_two_people(world: World) -> None:
    here, there = await world.server(), await world.server("globex", "labs")
    assert (await world.caller(here)).user_id != (await world.caller(there)).user_id


async def test_a_revoked_token_ends_at_once_and_no_other_does(world: World) -> None:
    guides, labs = await world.server(), await world.server(slug="labs")
    first, second = [await world.identity.create_token(guides.key, "ada@example.com") for _ in range(2)]
    elsewhere = await world.identity.create_token(labs.key, "ada@example.com")
    bobs = await world.identity.create_token(guides.key, "bob@example.com")
    assert await world.identity.revoke(labs.key, first) == 0
    assert await world.identity.revoke(guides.key, first) == 1
    assert await world.identity.bearer_of(guides.key, first) is None
    assert await world.identity.bearer_of(guides.key, second) is not None
    assert await world.identity.revoke_all_of(guides.key, "ada@example.com") == 1
    assert await world.identity.bearer_of(guides.key, second) is None
    assert await world.identity.bearer_of(labs.key, elsewhere) is not None
    assert await world.identity.bearer_of(guides.key, bobs) is not None


@pytest.mark.promise("version.unchanged")
async def test_equal_content_makes_no_new_version(world: World) -> None:
    await world.server()
    first = await world.authoring.push(
        "acme", manuscript("a", "b"), publish=PublishPolicy.KEEP, servers=[], by="author@example.com"
    )
    again = await world.authoring.push(
        "acme", manuscript("a", "b"), publish=PublishPolicy.SUPERSEDE, servers=[], by="author@example.com"
    )
    assert (first.version, first.is_unchanged) == (1, False)
    assert (again.version, again.is_unchanged, again.walkthrough_id) == (1, True, first.walkthrough_id)


async def test_a_draft_is_replaced_until_it_is_published(world: World) -> None:
    await world.server()
    for steps in (("a",), ("a", "b"), ("b", "a")):
        draft = await world.authoring.push(
            "acme", manuscript(*steps), publish=None, servers=[], by="author@example.com"
        )
        assert (draft.version, draft.is_published) == (1, False)
    published = await world.authoring.push(
        "acme", manuscript("b", "a"), publish=PublishPolicy.KEEP, servers=[], by="author@example.com"
    )
    assert (published.version, published.is_published) == (1, True)
    changed = await world.authoring.push("acme", manuscript("b"), publish=None, servers=[], by="author@example.com")
    assert (changed.version, changed.is_published) == (2, False)


async def test_a_push_of_what_is_published_leaves_no_draft_behind(world: World) -> None:
    await world.server()
    await world.authoring.push("acme", manuscript("a"), publish=PublishPolicy.KEEP, servers=[], by="author@example.com")
    await world.authoring.push("acme", manuscript("a", "b"), publish=None, servers=[], by="author@example.com")
    again = await world.authoring.push("acme", manuscript("a"), publish=None, servers=[], by="author@example.com")
    assert (again.version, again.is_unchanged) == (1, True)
    draft = await world.authoring.push("acme", manuscript("a", "c"), publish=None, servers=[], by="author@example.com")
    assert (draft.version, draft.is_unchanged) == (2, False)


async def test_nothing_is_stored_when_a_server_is_not_the_organisations(world: World) -> None:
    server = await world.server()
    await world.server("globex", "labs")
    with pytest.raises(NotFound):
        await world.authoring.push(
            "acme",
            manuscript("a"),
            publish=PublishPolicy.KEEP,
            servers=[("guides", None), ("labs", None)],
            by="author@example.com",
        )
    assert await world.catalogue.standings(Caller(server.key, None)) == []
    with pytest.raises(NotFound):
        await world.authoring.assign("acme", "tour", [("guides", None)])


async def test_an_assignment_keeps_its_place_until_another_is_named(world: World) -> None:
    await world.server()
    await world.publish("a", key="one")
    await world.publish("a", key="two")
    placed = [
        (await world.authoring.assign("acme", key, [("guides", order)]))[0].display_order
        for key, order in (("one", None), ("two", None), ("one", 7), ("one", None))
    ]
    assert placed == [1, 2, 7, 7]
    (listing,) = await world.tenancy.servers()
    assert listing.assigned == 2


async def test_a_walkthrough_of_another_organisation_cannot_be_assigned(world: World) -> None:
    await world.server()
    await world.server("globex", "labs")
    await world.publish("a", servers=())
    with pytest.raises(NotFound):
        await world.authoring.assign("globex", "tour", [("labs", None)])


async def test_who_may_call_a_server_is_changed_for_it_alone(world: World) -> None:
    await world.server()
    await world.server(slug="labs")
    await world.server("globex", "other")
    assert await world.tenancy.set_auth_mode("guides", AuthMode.ANONYMOUS) is AuthMode.ON_DEMAND
    assert await world.tenancy.set_auth_mode("guides", AuthMode.ON_CONNECT, "acme") is AuthMode.ANONYMOUS
    assert await world.tenancy.set_auth_mode("guides", AuthMode.ON_CONNECT) is AuthMode.ON_CONNECT
    with pytest.raises(NotFound):
        await world.tenancy.set_auth_mode("guides", AuthMode.ANONYMOUS, "globex")
    with pytest.raises(NotFound):
        await world.tenants.set_auth_mode(
            ServerKey(OrganizationId("org_none"), ServerId("srv_none")), AuthMode.ANONYMOUS
        )
    modes = {each.server.slug: each.server.auth_mode for each in await world.tenancy.servers()}
    assert modes == {"guides": AuthMode.ON_CONNECT, "labs": AuthMode.ON_DEMAND, "other": AuthMode.ON_DEMAND}
    found = await world.servers.server_at(slug="guides", custom_domain=None)
    assert found is not None
    assert found.auth_mode is AuthMode.ON_CONNECT


class Asked:
    """An identity provider that people could sign in with, or not."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem

    async def check(self, provider: OidcProvider) -> None:
        if self.problem:
            raise InvalidValue(self.problem)


async def test_an_organisation_has_the_provider_that_was_set_last_once_it_has_answered(world: World) -> None:
    guides = await world.server()
    await world.server(slug="labs")
    await world.server("globex", "other")
    here = guides.key.organization_id
    setting = Providers(world.tenancy, world.tenants, Asked(), world.clock)  # type: ignore[arg-type]
    failing = Providers(world.tenancy, world.tenants, Asked("no"), world.clock)  # type: ignore[arg-type]
    okta = OidcProvider("https://okta.example", "cairn", "secret", "Okta")
    entra = OidcProvider("https://entra.example/", "id", "other", "Entra", offers_email_codes=False)
    with pytest.raises(InvalidValue):
        await failing.set("acme", okta)
    assert await world.tenants.provider(here) is None
    for provider in (okta, entra):
        assert [each.slug for each in await setting.set("acme", provider)] == ["guides", "labs"]
        assert await world.tenants.provider(here) == provider
        with pytest.raises(InvalidValue):
            await failing.set("acme", okta)
    assert await world.tenants.provider(here) == entra
    assert [each.provider for each in await world.tenancy.servers()] == [entra, entra, None]
    with pytest.raises(NotFound):
        await setting.remove("globex")
    await setting.remove("acme")
    assert await world.tenants.provider(here) is None
    with pytest.raises(NotFound):
        await setting.remove("acme")
    with pytest.raises(NotFound):
        await setting.set("nowhere", okta)
