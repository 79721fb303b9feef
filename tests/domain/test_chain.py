"""The step chain against a plain list, and against every way in which stored links can be broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.chain import ChainEdit, StepChain, StepLink, unmoved
from domain.errors import BrokenChain
from domain.tenancy import StepId
from tests.domain.generate import examples, orders, step_ids

# Links wrongly taken for a chain could lead round for ever; a signal would only make Hypothesis try once more.
pytestmark = pytest.mark.timeout(60, method="thread")

A, B, C, D, X = map(StepId, "abcdx")


def links_of(order: Sequence[StepId]) -> list[StepLink]:
    """The links of a plain list, without asking the chain."""
    return [StepLink(step, after) for step, after in pairwise([*order, None])]


def order_of(chain: StepChain) -> list[StepId]:
    """What walking the chain gives; cut off, should it lead round for ever."""
    return list(islice(chain, len(chain) + 1))


# ------------------------------------------------------------------------------- operations, against a list

Operation = tuple[str, int, int, StepId]
operations = st.tuples(
    st.sampled_from(["insert", "remove", "move", "replace"]), st.integers(-1, 7), st.integers(0, 7), step_ids
)


Done = tuple[ChainEdit, list[StepId]]


def carried_out(chain: StepChain, order: list[StepId], operation: Operation) -> Done | None:
    """The operation on the chain and on a plain list; None where there is nothing it could be done to."""
    name, place, other, new = operation
    anchor = None if place == -1 or not order else order[place % len(order)]
    step = order[other % len(order)] if order else None
    after = list(order)
    match name:
        case "insert" if new not in order:
            after.insert(0 if anchor is None else after.index(anchor) + 1, new)
            return chain.insert_after(anchor, new), after
        case "remove" if step is not None:
            after.remove(step)
            return chain.remove(step), after
        case "move" if step is not None and step != anchor:
            after.remove(step)
            after.insert(0 if anchor is None else after.index(anchor) + 1, step)
            return chain.move(step, anchor), after
        case "replace" if step is not None and new not in order:
            after[after.index(step)] = new
            return chain.replace(step, new), after
    return None


@given(orders, st.lists(operations, max_size=12))
@examples(400)
def test_any_sequence_of_edits_orders_the_steps_as_a_list_would(order: list[StepId], sequence: list[Operation]) -> None:
    chain = StepChain.of(order)
    table = {link.id: link.next_step_id for link in links_of(order)}
    for operation in sequence:
        done = carried_out(chain, order, operation)
        if done is None:
            continue
        edit, expected = done
        assert order_of(chain) == order, "an edit leaves the chain it was made from as it was"
        assert order_of(edit.chain) == expected
        assert len(edit.chain) == len(expected)
        assert all(step in edit.chain for step in expected)
        assert edit.chain.first == (expected[0] if expected else None)
        assert list(edit.chain.links()) == links_of(expected)

        # What is stored is written from the edit alone: the links that differ, all of them and no others.
        differing = {link for link in links_of(expected) if table.get(link.id, "no row") != link.next_step_id}
        assert set(edit.changed) == differing
        assert len(edit.changed) == len(differing) <= 3
        assert {edit.removed} - {None} == table.keys() - set(expected)
        if edit.removed is not None:
            del table[edit.removed]
        table.update({link.id: link.next_step_id for link in edit.changed})
        assert StepChain.from_links(StepLink(*row) for row in table.items()) == edit.chain
        chain, order = edit.chain, expected


@given(orders)
@examples(100)
def test_moving_a_step_to_where_it_stands_writes_nothing(order: list[StepId]) -> None:
    chain = StepChain.of(order)
    for anchor, step in zip([None, *order], order, strict=False):
        assert chain.move(step, anchor) == ChainEdit(chain, (), None)


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(lambda chain: chain.insert_after(A, C), id="insert what is there"),
        pytest.param(lambda chain: chain.insert_after(None, A), id="insert the head again"),
        pytest.param(lambda chain: chain.insert_after(D, X), id="insert after what is not there"),
        pytest.param(lambda chain: chain.remove(D), id="remove what is not there"),
        pytest.param(lambda chain: chain.move(D, A), id="move what is not there"),
        pytest.param(lambda chain: chain.move(D, None), id="move what is not there to the front"),
        pytest.param(lambda chain: chain.move(A, D), id="move after what is not there"),
        pytest.param(lambda chain: chain.move(B, B), id="move after itself"),
        pytest.param(lambda chain: chain.replace(D, X), id="replace what is not there"),
        pytest.param(lambda chain: chain.replace(A, B), id="replace by what is there"),
        pytest.param(lambda chain: chain.replace(A, A), id="replace by itself"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused(operation: Callable[[StepChain], ChainEdit]) -> None:
    chain = StepChain.of([A, B, C])
    with pytest.raises(BrokenChain):
        operation(chain)
    assert order_of(chain) == [A, B, C]


def test_nothing_can_be_taken_from_an_empty_chain() -> None:
    for operation in (lambda chain: chain.remove(A), lambda chain: chain.move(A, None)):
        with pytest.raises(BrokenChain):
            operation(StepChain.of([]))


# -------------------------------------------------------------------------------------- links, as stored


@given(orders, st.randoms(use_true_random=False))
@examples(100)
def test_links_are_read_in_any_order(order: list[StepId], random: object) -> None:
    shuffled = links_of(order)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    chain = StepChain.from_links(shuffled)
    assert list(chain) == order
    assert chain == StepChain.of(order)
    assert hash(chain) == hash(StepChain.of(order))


@given(orders, orders)
@examples(200)
def test_chains_are_equal_when_their_orders_are(one: list[StepId], other: list[StepId]) -> None:
    assert (StepChain.of(one) == StepChain.of(other)) == (one == other)
    assert StepChain.of(one) != tuple(one)


@pytest.mark.parametrize("made", [StepChain.from_links, StepChain.of])
def test_the_empty_chain_has_no_first_step(made: Callable[[Sequence[object]], StepChain]) -> None:
    empty = made([])
    assert (list(empty), len(empty), empty.first, list(empty.links())) == ([], 0, None, [])
    assert list(empty.insert_after(None, A).chain) == [A]


def is_one_chain(links: list[StepLink]) -> bool:
    """By trial: from some step, one passes every step once and comes to the end."""
    following = {link.id: link.next_step_id for link in links}
    if len(following) != len(links):
        return False
    for first in following:
        passed: list[StepId] = []
        step: StepId | None = first
        while step in following and step not in passed:
            passed.append(step)
            step = following[step]
        if step is None and len(passed) == len(links):
            return True
    return not links


any_link = st.builds(StepLink, st.sampled_from([A, B, C, D]), st.sampled_from([A, B, C, D, X, None]))


@given(st.lists(any_link, max_size=5))
@examples(1_000)
def test_links_are_accepted_exactly_when_they_are_one_chain(links: list[StepLink]) -> None:
    if is_one_chain(links):
        assert sorted(StepChain.from_links(links)) == sorted(link.id for link in links)
    else:
        with pytest.raises(BrokenChain):
            StepChain.from_links(links)


sound = st.lists(step_ids, unique=True, min_size=2, max_size=8).map(links_of)
NEW = [StepId(f"new{number}") for number in range(4)]


@st.composite
def broken(draw: st.DrawFn, how: str) -> list[StepLink]:
    """A sound chain's links, broken in one way."""
    links = draw(sound)
    last = len(links) - 1
    place = draw(st.integers(0, last - 1))
    match how:
        case "two heads":
            links.append(StepLink(NEW[0], links[draw(st.integers(1, last))].id))
        case "two tails":
            links[place] = StepLink(links[place].id, None)
        case "two chains":
            links.append(StepLink(NEW[0], None))
        case "cycle through all":
            links[last] = StepLink(links[last].id, links[0].id)
        case "cycle at the end":
            links[last] = StepLink(links[last].id, links[draw(st.integers(1, last))].id)
        case "orphan ring":
            ring = NEW[: draw(st.integers(1, 4))]
            links += [StepLink(step, after) for step, after in zip(ring, [*ring[1:], ring[0]], strict=True)]
        case "shared successor":
            other = draw(st.integers(0, last).filter(lambda other: other != place))
            links[other] = StepLink(links[other].id, links[place].next_step_id)
        case "dangling":
            place = draw(st.integers(0, last))
            links[place] = StepLink(links[place].id, NEW[0])
        case "two links of one step":
            following = draw(st.sampled_from([links[place].next_step_id, None, NEW[0]]))
            links.append(StepLink(links[place].id, following))
    return draw(st.permutations(links))


WAYS = ["two heads", "two tails", "two chains", "cycle through all", "cycle at the end", "orphan ring"]
WAYS += ["shared successor", "dangling", "two links of one step"]


@pytest.mark.parametrize("how", WAYS)
def test_broken_links_are_refused(how: str) -> None:
    @given(broken(how))
    @examples(60)
    def refuses(links: list[StepLink]) -> None:
        with pytest.raises(BrokenChain):
            StepChain.from_links(links)

    refuses()


@given(st.lists(step_ids, unique=True, min_size=1, max_size=6), st.data())
@examples(60)
def test_an_order_that_names_a_step_twice_is_refused(order: list[StepId], data: st.DataObject) -> None:
    order.insert(data.draw(st.integers(0, len(order))), data.draw(st.sampled_from(order)))
    with pytest.raises(BrokenChain):
        StepChain.of(order)


# ---------------------------------------------------------------------------------------- two orders of steps


@given(orders, orders)
@examples(400)
def test_as_many_steps_as_possible_are_taken_to_have_stayed(before: list[StepId], after: list[StepId]) -> None:
    stay = unmoved(before, after)
    assert [step for step in before if step in stay] == [step for step in after if step in stay]
    common = [step for step in before if step in after]
    most = max(
        size
        for size in range(len(common) + 1)
        for kept in combinations(common, size)
        if sorted(kept, key=after.index) == list(kept)
    )
    assert len(stay) == most
    assert stay == unmoved(before, after)


@pytest.mark.parametrize(
    ("before", "after", "stay"),
    [
        ("", "", ""),
        ("abc", "", ""),
        ("abc", "xyz", ""),
        ("abcd", "abcd", "abcd"),
        ("abcd", "dabc", "abc"),
        ("abcd", "bcda", "bcd"),
        ("abcd", "axbd", "abd"),
    ],
)
def test_one_step_put_elsewhere_is_the_one_that_moved(before: str, after: str, stay: str) -> None:
    assert unmoved(before, after) == set(stay)


# --------------------------------------------------------------------------------------------------- size


class Counted(Mapping[StepId, StepId | None]):
    """A mapping that counts how often it is asked."""

    def __init__(self, of: Mapping[StepId, StepId | None]) -> None:
        self._of = of
        self.asked: Counter[StepId] = Counter()

    def __getitem__(self, step: StepId) -> StepId | None:
        self.asked[step] += 1
        return self._of[step]

    def __iter__(self) -> Iterator[StepId]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def test_fifty_thousand_steps_are_no_burden() -> None:
    order = [StepId(f"s{number}") for number in range(50_000)]
    chain = StepChain.from_links(reversed(links_of(order)))
    assert list(chain) == order
    assert list(chain.move(order[-1], None).chain) == [order[-1], *order[:-1]]
    assert hash(chain) == hash(StepChain.of(order))


def test_two_orders_of_fifty_thousand_steps_are_compared_at_once() -> None:
    order = range(50_000)
    assert unmoved(order, [*order[1:], order[0]]) == set(order[1:])
    assert len(unmoved(order, order[::-1])) == 1


def test_walking_a_chain_looks_at_each_link_once() -> None:
    order = [StepId(f"s{number}") for number in range(1_000)]
    following = Counted({link.id: link.next_step_id for link in links_of(order)})
    assert list(StepChain(order[0], following)) == order
    assert following.asked == dict.fromkeys(order, 1)
