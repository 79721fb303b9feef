"""The forecast of a publish against what really becomes of people, one by one, once it is published."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import CorruptHistory, WalkthroughUnavailable
from domain.forecast import Fate, Forecast, Outlook, Standing, forecast
from domain.progress import Status, Told, move_is_offered
from domain.tenancy import StepId
from domain.walkthrough import PublishPolicy, VersionKey
from tests.domain.course import CARRY_OVER, KEEP, OFFER, SUPERSEDE, Call, Course
from tests.domain.generate import ORGANIZATION, WALKTHROUGH, examples, key_orders, revised, version_of


def standing(course: Course, people: int = 1) -> Standing:
    """Where the person of `course` stands, as `people` do."""
    current = course.stands.current_step_id
    assert current is not None
    return Standing(course.stands.version, current, course.stands.carried, not course.author.is_hidden, people)


def forecast_of(keys: str, policy: PublishPolicy, *standings: Standing, course: Course) -> Forecast:
    """The forecast of publishing these steps where the author of `course` now is."""
    number = course.author.latest + 1
    return forecast(
        VersionKey(ORGANIZATION, WALKTHROUGH, number),
        version_of(number, keys).manuscript("setup"),
        policy,
        standings,
        course.versions,
        withdrawn=course.author.withdrawn,
    )


# ------------------------------------------------------------------------------------------------ property


@st.composite
def publishes(draw: st.DrawFn) -> list[tuple[tuple[str, ...], PublishPolicy]]:
    """The keys and policy of two to five versions, one after the other."""
    keys = draw(key_orders)
    made = [(keys, KEEP)]
    for _ in range(draw(st.integers(1, 4))):
        # One that was published before brings back keys that people carry with them.
        keys = draw(revised(keys) | st.sampled_from([earlier for earlier, _ in made]))
        made.append((keys, draw(st.sampled_from([*PublishPolicy, CARRY_OVER, CARRY_OVER]))))
    return made


# For each version, how many steps someone goes on after it is published; None where they do not call at all.
paces = st.lists(st.sampled_from([None, 0, 1, 1, 2, 3]), min_size=4, max_size=4)


@given(publishes(), st.lists(st.tuples(paces, st.booleans()), min_size=1, max_size=6))
@examples(300)
def test_what_is_forecast_is_what_becomes_of_everyone(
    made: list[tuple[tuple[str, ...], PublishPolicy]], group: list[tuple[list[int | None], bool]]
) -> None:
    *before, (new_keys, new_policy) = made
    people: list[Course] = []
    for pace, is_hidden in group:
        course = Course()
        for (keys, policy), steps in zip(before, pace, strict=False):
            course.publish(keys, policy)
            for call in range(0 if steps is None else steps + 1):
                if call == 0:
                    course.select()
                elif course.stands.current_step_id is not None:
                    course.next()
        people.append(course.hide(is_hidden))

    midway = [course for course in people if course.progress and course.progress.status is Status.IN_PROGRESS]
    foretold = forecast_of("".join(new_keys), new_policy, *map(standing, midway), course=people[0])

    came_true: Counter[tuple[int, int, str, Fate, int | None]] = Counter()
    for course in midway:
        stood = course.stands
        mine, number = course.versions[stood.version], stood.current_number(course.versions[stood.version])
        step = stood.current_step(mine)
        assert step is not None
        assert number is not None
        course.publish(new_keys, new_policy)
        new = course.versions[course.author.latest]
        try:
            told = course.call(Call("select"))
        except WalkthroughUnavailable:
            fate, to_number = Fate.WAITS, None
        else:
            is_offered = move_is_offered(course.stands, course.author.publication(course.stands))
            fate = {
                Told.RESUMED: Fate.OFFERED if is_offered else Fate.STAYS,
                Told.MOVED_TO_LATEST: Fate.MOVES,
                Told.COMPLETED: Fate.COMPLETES,
                Told.RESTARTED: Fate.RESTARTS,
            }[told]
            to_number = course.stands.current_number(new) if course.stands.version == new.number else None
            if fate is Fate.STAYS and new_policy is CARRY_OVER:
                course.hide(False).select()
                assert course.stands.version == new.number
                fate = Fate.PENDING
        came_true[mine.number, number, step.key, fate, to_number] += 1
    rows = [(row.version, row.number, row.step_key, row.fate, row.to_number) for row in foretold.outlooks]
    assert {place: row.people for place, row in zip(rows, foretold.outlooks, strict=True)} == came_true
    assert len(set(rows)) == len(rows)
    assert rows == sorted(rows, key=lambda row: (row[0], row[1], row[3], row[4] or 0))
    assert foretold.people() == len(midway)
    assert sum(foretold.people(fate) for fate in Fate) == len(midway)


# ------------------------------------------------------------------------------------------------ examples


def three_people() -> tuple[Course, list[Standing]]:
    """12 on `a`, 30 on `b` and 4 on `d` of version 1, which has the steps abcd."""
    courses = [Course.of("abcd").begin(steps) for steps in (0, 1, 3)]
    return courses[0], [standing(course, people) for course, people in zip(courses, (12, 30, 4), strict=True)]


@pytest.mark.promise("version.commands")
@pytest.mark.parametrize(
    ("policy", "fates"),
    [
        (KEEP, [(Fate.STAYS, None), (Fate.STAYS, None), (Fate.STAYS, None)]),
        (OFFER, [(Fate.OFFERED, None), (Fate.OFFERED, None), (Fate.OFFERED, None)]),
        (CARRY_OVER, [(Fate.MOVES, 1), (Fate.MOVES, 1), (Fate.COMPLETES, None)]),
        (SUPERSEDE, [(Fate.RESTARTS, 1), (Fate.RESTARTS, 1), (Fate.RESTARTS, 1)]),
    ],
)
def test_before_publishing_the_author_sees_what_would_become_of_whom(
    policy: PublishPolicy, fates: list[tuple[Fate, int | None]]
) -> None:
    course, standings = three_people()
    foretold = forecast_of("cab", policy, *standings, course=course)
    places = [(1, "a", 12), (2, "b", 30), (4, "d", 4)]
    assert foretold.outlooks == tuple(
        Outlook(1, number, key, fate, to_number, people)
        for (number, key, people), (fate, to_number) in zip(places, fates, strict=True)
    )
    assert foretold.people() == 46
    assert foretold.people(Fate.MOVES, Fate.COMPLETES) == (46 if policy is CARRY_OVER else 0)


def test_people_who_share_a_step_but_not_their_past_are_told_apart_where_their_fates_differ() -> None:
    course = Course.of("ab").publish("ba")
    untouched = Standing(2, StepId("b-2"), frozenset(), True, 5)
    carried = replace(untouched, carried=frozenset("ac"), people=2)
    foretold = forecast_of("abc", CARRY_OVER, carried, untouched, untouched, course=course)
    assert foretold.outlooks == (
        Outlook(2, 1, "b", Fate.MOVES, 1, 10),
        Outlook(2, 1, "b", Fate.MOVES, 2, 2),
    )
    assert forecast_of("abc", KEEP, untouched, carried, course=course).outlooks == (
        Outlook(2, 1, "b", Fate.STAYS, None, 7),
    )


@pytest.mark.parametrize(
    ("policy", "fate"), [(KEEP, Fate.STAYS), (OFFER, Fate.STAYS), (CARRY_OVER, Fate.PENDING), (SUPERSEDE, Fate.WAITS)]
)
def test_where_it_is_not_enabled_nobody_is_moved_yet_and_the_withdrawn_wait(policy: PublishPolicy, fate: Fate) -> None:
    course = Course.of("abc").begin(1).hide()
    assert forecast_of("ab", policy, standing(course, 3), course=course).outlooks == (
        Outlook(1, 2, "b", fate, None, 3),
    )


@pytest.mark.parametrize("policy", PublishPolicy)
def test_who_is_on_a_withdrawn_version_restarts_under_any_policy(policy: PublishPolicy) -> None:
    course = Course.of("abc").begin(1).publish("abc", SUPERSEDE)
    assert forecast_of("ab", policy, standing(course), course=course).outlooks == (
        Outlook(1, 2, "b", Fate.RESTARTS, 1, 1),
    )


def test_where_nobody_is_midway_nothing_is_foretold() -> None:
    assert forecast_of("ab", SUPERSEDE, course=Course.of("abc")) == Forecast(())


def test_a_standing_on_a_step_that_its_version_does_not_have_is_refused() -> None:
    course = Course.of("abc")
    with pytest.raises(CorruptHistory):
        forecast_of("ab", KEEP, Standing(1, StepId("x-1"), frozenset(), True, 1), course=course)


def test_only_supersede_withdraws_older_versions() -> None:
    assert [policy for policy in PublishPolicy if policy.withdraws_older] == [SUPERSEDE]
