"""What refusals say: one clear sentence with what to do, and the facts that others word for the assistant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import pytest

from domain import errors
from domain.chain import StepChain, StepLink
from domain.difference import difference
from domain.draft import Draft, MoveStep, RecordedEdit, RemoveStep
from domain.errors import BrokenChain, CairnError, Candidate, CorruptHistory, OperatorError
from domain.forecast import Standing, forecast
from domain.oauth import MAX_REDIRECT_URIS, Client, ClientRefused
from domain.progress import EventKind, ProgressEvent, Standpoint, Told, evolve, replay
from domain.publishing import Change, Signature, Walkthrough, unknown
from domain.tenancy import (
    AuthMode,
    Millis,
    Server,
    ServerId,
    ServerKey,
    StepId,
    display_name,
    domain_name,
    email_address,
    key,
    slug,
)
from domain.walkthrough import (
    Finding,
    Manuscript,
    PublishPolicy,
    StepText,
    VersionKey,
    WalkthroughType,
    description,
    in_order,
    minutes,
    title,
)
from tests.domain.course import KEEP, KEY, START, Course
from tests.domain.generate import ORGANIZATION, WALKTHROUGH, outline_of

VERSION = VersionKey(ORGANIZATION, WALKTHROUGH, 1)
ADA = Signature("ada@example.com", Millis(1_000))
TOUR = Walkthrough(ORGANIZATION, WALKTHROUGH, "tour")
AT_THE_END = Standpoint("The tour", "w1", None, None, 2, None)
SINCE = (RecordedEdit(2, 1, RemoveStep("b"), "bob@example.com", Millis(1_000)),)
FINDING = Finding("steps/a.md", 3, "no-html", "write it in Markdown")


def ids() -> Iterator[StepId]:
    return (StepId(f"stp_{number}") for number in count())


def step(key: str = "a", **given: object) -> StepText:
    return StepText(**{"key": key, "title": "Title", "content": "Do it."} | given)  # type: ignore[arg-type]


def manuscript(*keys: str) -> Manuscript:
    return Manuscript("tour", "The tour", "Shows around.", WalkthroughType.COURSE, tuple(map(step, keys)))


def pushed(
    walkthrough: Walkthrough, *keys: str, publish: PublishPolicy | None = KEEP, latest: int | None = None
) -> Change:
    return walkthrough.push(manuscript(*keys), ids(), ADA, publish=publish, expected_latest=latest)


def published() -> Walkthrough:
    """The tour with version 1, of the steps a and b."""
    return pushed(TOUR, "a", "b").after


def edited() -> Walkthrough:
    """The published tour with a draft of version 2, in which b was removed."""
    return published().edit((2, 0), [RemoveStep("b")], ids(), ADA).after


def draft(*keys: str, revision: int = 0) -> Draft:
    texts = dict(zip(ids(), map(step, keys), strict=False))
    type = WalkthroughType.COURSE
    return Draft(VERSION, "tour", "The tour", "Shows around.", type, StepChain.of(texts), texts, revision)


def chain(*keys: str) -> StepChain:
    return StepChain.of(map(StepId, keys))


def begun() -> Course:
    """Somebody on the first step of version 1, which has the steps a and b."""
    return Course.of("ab").begin()


def moved() -> Course:
    """Somebody who was moved from there to version 2."""
    course = begun().publish("ab", PublishPolicy.CARRY_OVER)
    assert course.select() is Told.MOVED_TO_LATEST
    return course


def gained(step_id: str) -> ProgressEvent:
    """What a merge records of somebody who has `begun`, and gains a step."""
    return begun().events[0]._replace(revision=2, kind=EventKind.MERGED, from_step_id=StepId(step_id))


def from_links(*links: tuple[str, str | None]) -> StepChain:
    return StepChain.from_links(StepLink(StepId(id), after and StepId(after)) for id, after in links)


def registered(**said: object) -> Client:
    return Client.registered({"redirect_uris": ["https://client.example.com/"], **said})


TO_OPERATORS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: slug("Acme Inc"),
        "'Acme Inc' cannot be a slug: use 1 to 63 lower-case letters, digits and hyphens, beginning and ending with a "
        "letter or digit",
    ),
    (
        lambda: key("Intro"),
        "'Intro' cannot be a key: use 1 to 64 lower-case letters, digits, '.', '_' and '-', beginning with a letter or "
        "digit",
    ),
    (lambda: domain_name("guides"), "'guides' cannot be a domain: give a host name such as guides.example.com"),
    (lambda: display_name(""), "a name is one line of 1 to 100 characters"),
    (lambda: email_address("ada"), "'ada' cannot be an e-mail address: give one such as ada@example.com"),
    (
        lambda: Server(
            ServerKey(ORGANIZATION, ServerId("srv")), "acme", "Acme", AuthMode.ON_DEMAND, "Guides.example.com"
        ),
        "'Guides.example.com' must be in lower case",
    ),
    (lambda: title(""), "a title is one line of 1 to 200 characters"),
    (lambda: description(""), "a description has 1 to 1000 characters"),
    (lambda: minutes(0), "minutes are a whole number from 1 to 1440"),
    (lambda: step(content=" "), "step 'a' has no content for the user"),
    (lambda: step(content="\x00"), "step 'a' contains a NUL character or half of a surrogate pair"),
    (
        lambda: step(content="x" * 16_000),
        "step 'a' would take up to 41,004 bytes when delivered, 1,004 more than the 40,000 that are allowed: split it "
        "into two steps",
    ),
    (lambda: manuscript(), "a walkthrough has 1 to 500 steps; this one has 0"),
    (lambda: manuscript("b", "a", "b", "a"), "the step key 'a' is used twice"),
    (lambda: outline_of(1, ""), "a version has at least one step, and each step an id and a key of its own"),
    (lambda: draft("a", "a"), "each step of a draft has a key of its own"),
    (lambda: draft("a", revision=-1), "a draft's revision counts from 0"),
    (
        lambda: difference(manuscript("a", "b"), manuscript("x"), renames={"a": "x", "b": "x"}),
        "two steps cannot have been renamed to one key",
    ),
    (lambda: in_order(["a"], ["b"]), "walkthrough 'b' is not on this server: assign it first"),
    (lambda: in_order(["a"], ["a", "a"]), "walkthrough 'a' comes twice in the order: name it once"),
    (lambda: MoveStep("a", "a"), "step 'a' cannot come after itself: name another step"),
    (
        lambda: published().reorder((2, 0), ["a"], ids(), ADA),
        "a new order names each step of the draft once, and the draft has 2",
    ),
    (
        lambda: (
            TOUR.push(manuscript("a"), ids(), ADA, publish=None)
            .after.edit((1, 0), [RemoveStep("a")], ids(), ADA)
            .after.publish((1, 1), ids(), KEEP, ADA)
        ),
        "the draft has no steps: insert at least one before you publish it",
    ),
    (lambda: published().record(2), "tour has no published version 2: see 'cairn versions tour'"),
    (lambda: TOUR.drafted(ids()), "tour has neither a version nor a draft: push it with 'cairn push DIR'"),
    (lambda: TOUR.unpublish(ADA), "tour was never published, so there is nothing to unpublish"),
    (lambda: TOUR.publish_again(ADA), "tour was never published, so there is nothing to publish again"),
    (
        lambda: pushed(TOUR.archive(ADA).after, "a"),
        "tour is archived: restore it before you publish it",
    ),
    (
        lambda: published().withdraw(1, ADA),
        "version 1 is the latest of tour, and only older ones are withdrawn: unpublish tour to hide it, or publish "
        "another version first",
    ),
    (
        lambda: pushed(TOUR, "a", latest=1),
        "nothing was published: tour has no version 1 yet: expect 0 to publish its first",
    ),
    (
        lambda: pushed(published(), "c", latest=2),
        "nothing was published: tour has no version 2 yet: see 'cairn versions tour'",
    ),
    (
        lambda: pushed(published(), "c", latest=0),
        "version 1 of tour was published already by ada@example.com, with the policy keep, and nothing was done now: "
        "look at it before you publish again",
    ),
    (
        lambda: pushed(edited(), "c"),
        "the draft of tour was edited in place since it was last pushed, and your files would undo that: bring those "
        "edits into your files, publish or discard the draft, or force the push",
    ),
    (
        lambda: edited().publish((2, 0), ids(), KEEP, ADA),
        "the draft has changed since you read it, and nothing of yours was stored: look at what changed, and make your "
        "edit again on revision 1 of the draft of version 2",
    ),
]


@pytest.mark.parametrize(("refused", "says"), TO_OPERATORS, ids=[says for _, says in TO_OPERATORS])
def test_a_refusal_tells_an_operator_in_one_sentence_what_to_do(refused: Callable[[], object], says: str) -> None:
    with pytest.raises(OperatorError) as refusal:
        refused()
    assert str(refusal.value) == says


def test_a_walkthrough_that_is_not_there_is_to_be_pushed() -> None:
    assert str(unknown("tour")) == "there is no walkthrough 'tour': push it first with 'cairn push DIR'"


TO_CLIENTS: list[tuple[Callable[[], object], str, str]] = [
    (
        lambda: registered(redirect_uris=[]),
        "invalid_redirect_uri",
        f"Give 1 to {MAX_REDIRECT_URIS} redirect_uris: https, http on 127.0.0.1, [::1] or localhost, or an app's own "
        "scheme such as com.example.app; without fragment and user name.",
    ),
    (
        lambda: registered(token_endpoint_auth_method="private_key_jwt"),
        "invalid_client_metadata",
        "token_endpoint_auth_method is one of: none, client_secret_basic, client_secret_post.",
    ),
    (
        lambda: registered(grant_types=["client_credentials"]),
        "invalid_client_metadata",
        "Only the authorization code flow is served: name authorization_code in grant_types.",
    ),
    (lambda: registered(grant_types="x"), "invalid_client_metadata", "grant_types is a list of texts."),
    (lambda: registered(response_types=[7]), "invalid_client_metadata", "response_types is a list of texts."),
    (lambda: registered(client_name=7), "invalid_client_metadata", "client_name is a text."),
    (
        lambda: Client.documented("https://client.example.com/client.json", {}),
        "invalid_client_metadata",
        "A document names itself as client_id, and holds no secret.",
    ),
]


@pytest.mark.parametrize(("refused", "error", "says"), TO_CLIENTS, ids=[says for _, _, says in TO_CLIENTS])
def test_a_refusal_tells_a_client_in_one_sentence_what_to_do(
    refused: Callable[[], object], error: str, says: str
) -> None:
    with pytest.raises(ClientRefused) as refusal:
        refused()
    assert (refusal.value.error, refusal.value.problem, str(refusal.value)) == (error, says, says)


def test_a_rejection_counts_the_problems_that_it_does_not_list_too() -> None:
    assert str(errors.ContentRejected([FINDING])) == "1 problem found"
    assert str(errors.ContentRejected([FINDING] * 2)) == "2 problems found"
    assert str(errors.ContentRejected([FINDING], unlisted=1_999)) == "2,000 problems found"


def test_who_published_first_is_told_where_it_is_known() -> None:
    (version,) = published().versions
    error = errors.PublishedMeanwhile("tour", replace(version, published_by=None))
    assert error.version.number == 1
    assert str(error) == (
        "version 1 of tour was published already, with the policy keep, and nothing was done now: look at it before "
        "you publish again"
    )


# What no use case leads to: whoever looks for the bug, or at a damaged database, is told what was found.
A, B, C, D = map(StepId, "abcd")
TO_US: list[tuple[Callable[[], object], str]] = [
    (lambda: from_links(("a", "b"), ("b", None), ("a", None)), "step a has two links"),
    (lambda: from_links(("a", "c"), ("b", "c"), ("c", None)), "two steps have the same successor"),
    (lambda: from_links(("a", "z")), "a step leads to z, which is not there"),
    (lambda: from_links(("a", None), ("b", None)), "2 steps could be the first; exactly one must be"),
    (lambda: from_links(("a", None), ("b", "b")), "some steps lead round in a ring and are never reached"),
    (lambda: chain("a", "b").insert_after(A, B), "step b is in the chain already"),
    (lambda: chain("a", "b").insert_after(C, D), "step c is not in the chain"),
    (lambda: chain("a", "b").remove(C), "step c is not in the chain"),
    (lambda: chain("a", "b").move(A, A), "step a cannot come after itself"),
    (lambda: chain("a", "b").replace(A, B), "step b is in the chain already"),
    (lambda: replace(draft("a"), texts={}), "a draft's chain and its texts are of the same steps"),
    (lambda: replay(KEY, [], {}), "no events, no progress"),
    (
        lambda: replay(KEY, begun().events * 2, begun().versions),
        f"started at revision 1 cannot follow on {begun().stands}",
    ),
    (
        lambda: replay(KEY, moved().events, {2: outline_of(2, "ab")}),
        "version 1, which was left, is not there",
    ),
    (
        lambda: begun().stands.current_step(outline_of(2, "ab")),
        f"version 2 does not hold the current step of {KEY}",
    ),
    (
        lambda: evolve(begun().stands, gained("x-1"), KEY, begun().versions),
        "the version of step x-1, which was gained, is not there",
    ),
    (
        lambda: replace(begun().stands, completed_at=START),
        "completed means: no current step, and a time of completion",
    ),
    (
        lambda: replace(begun().stands, attempt=0),
        "versions, attempts and revisions count from 1, and activity follows the start",
    ),
    (
        lambda: forecast(
            VersionKey(ORGANIZATION, WALKTHROUGH, 2),
            manuscript("a"),
            KEEP,
            [Standing(1, StepId("x-1"), frozenset(), True, 1)],
            begun().versions,
            withdrawn=[],
        ),
        "version 1 does not hold step x-1",
    ),
]


@pytest.mark.parametrize(("found", "says"), TO_US, ids=[says for _, says in TO_US])
def test_what_cannot_be_names_what_was_found(found: Callable[[], object], says: str) -> None:
    with pytest.raises((BrokenChain, CorruptHistory)) as failure:
        found()
    assert str(failure.value) == says


# ------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (
            lambda: errors.WalkthroughNotFound("tuor", [Candidate("w1", "tour", "The tour")]),
            {"reference": "tuor", "candidates": (Candidate("w1", "tour", "The tour"),), "ambiguous": False},
        ),
        (
            lambda: errors.WalkthroughNotFound("The tour", [], ambiguous=True),
            {"reference": "The tour", "candidates": (), "ambiguous": True},
        ),
        (lambda: errors.WalkthroughNotStarted("The tour", "w1"), {"title": "The tour", "reference": "w1"}),
        (lambda: errors.WalkthroughUnavailable("The tour"), {"title": "The tour"}),
        (
            lambda: errors.CompletedStepRequired([AT_THE_END], unreadable=True),
            {"standpoints": (AT_THE_END,), "unreadable": True},
        ),
        (lambda: errors.StepNotCurrent(AT_THE_END), {"standpoint": AT_THE_END}),
        (lambda: errors.StepNotReached(4, 5, [1, 2]), {"step_number": 4, "total_steps": 5, "reachable": (1, 2)}),
        (lambda: errors.VersionWithdrawn("The tour", "w1"), {"title": "The tour", "reference": "w1"}),
        (lambda: errors.InvalidArguments("`step` is a number"), {"problem": "`step` is a number"}),
        (lambda: errors.RateLimited(7), {"retry_after_seconds": 7}),
        (lambda: errors.TooManyRequests(7), {"retry_after_seconds": 7}),
        (lambda: errors.SignInFailed("Begin again."), {"problem": "Begin again."}),
        (lambda: errors.StaleEdit(2, 1, SINCE), {"number": 2, "revision": 1, "since": SINCE}),
        (lambda: errors.EditedInPlace("tour", 2, 1, SINCE), {"number": 2, "revision": 1, "since": SINCE}),
        (lambda: errors.ContentRejected([FINDING]), {"findings": (FINDING,)}),
    ],
)
def test_an_error_carries_the_facts_that_it_is_worded_from(
    error: Callable[[], CairnError], facts: dict[str, object]
) -> None:
    assert vars(error()) == facts
