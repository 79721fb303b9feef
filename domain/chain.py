"""The step chain: the order of a version's steps, as the links that each step holds to the next.

    first ─▶ a ─▶ b ─▶ c ─▶ ∎           next_step_id of the last step is None

A chain has one head and one tail; it has no cycle, no orphan, and no two steps with one successor. Links that
break this cannot be made into a StepChain. An edit changes at most three links, and says which, so that a
store writes those and nothing else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from domain.errors import BrokenChain
from domain.tenancy import StepId

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class StepLink:
    """One step's place: its own id and that of the step after it, None at the end."""

    id: StepId
    next_step_id: StepId | None


@dataclass(frozen=True, slots=True)
class StepChain:
    """An order of steps that cannot be broken. The empty chain is one (a draft begins with it)."""

    first: StepId | None
    _next: Mapping[StepId, StepId | None]

    @classmethod
    def from_links(cls, links: Iterable[StepLink]) -> StepChain:
        """Links in any order, as they are stored.

        Raises:
            BrokenChain: when they are not one chain; the message says how.
        """
        following: dict[StepId, StepId | None] = {}
        for link in links:
            if link.id in following:
                raise BrokenChain(f"step {link.id} has two links")
            following[link.id] = link.next_step_id
        successors = [after for after in following.values() if after is not None]
        if len(set(successors)) != len(successors):
            raise BrokenChain("two steps have the same successor")
        if missing := set(successors) - following.keys():
            raise BrokenChain(f"a step leads to {min(missing)}, which is not there")
        heads = following.keys() - set(successors)
        # With unique successors that all exist, n steps have as many heads as tails; what is not reached from
        # a single head can only be a ring of its own.
        if following and len(heads) != 1:
            raise BrokenChain(f"{len(heads)} steps could be the first; exactly one must be")
        chain = cls(next(iter(heads), None), following)
        if sum(1 for _ in chain) != len(following):
            raise BrokenChain("some steps lead round in a ring and are never reached")
        return chain

    @classmethod
    def of(cls, ids: Iterable[StepId]) -> StepChain:
        """The chain that visits `ids` in this order.

        Raises:
            BrokenChain: when an id comes twice.
        """
        order = list(ids)
        return cls.from_links(map(StepLink, order, [*order[1:], None]))

    def __iter__(self) -> Iterator[StepId]:
        step = self.first
        while step is not None:
            yield step
            step = self._next[step]

    def __len__(self) -> int:
        return len(self._next)

    def __contains__(self, step: object) -> bool:
        return step in self._next

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepChain) and dict(self._next) == dict(other._next)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def links(self) -> Iterator[StepLink]:
        """Every link, in order."""
        return (StepLink(step, self._next[step]) for step in self)

    def insert_after(self, anchor: StepId | None, new: StepId) -> ChainEdit:
        """`new` directly after `anchor`, or first where `anchor` is None.

        Raises:
            BrokenChain: when `new` is there already or `anchor` is not.
        """
        if new in self:
            raise BrokenChain(f"step {new} is in the chain already")
        follower = self._after(anchor)
        return self._edited(((anchor, new), (new, follower)))

    def remove(self, step: StepId) -> ChainEdit:
        """Without `step`; its predecessor leads on to its successor.

        Raises:
            BrokenChain: when `step` is not there.
        """
        return self._edited(((self._before(step), self._next[step]),), without=step)

    def move(self, step: StepId, anchor: StepId | None) -> ChainEdit:
        """`step` directly after `anchor`, or first where `anchor` is None; nothing else changes its order.

        Raises:
            BrokenChain: when either is not there, or `anchor` is `step`.
        """
        if step == anchor:
            raise BrokenChain(f"step {step} cannot come after itself")
        before, follower = self._before(step), self._after(anchor)
        if before == anchor:
            return ChainEdit(self, (), None)
        return self._edited(((before, self._next[step]), (anchor, step), (step, follower)))

    def replace(self, old: StepId, new: StepId) -> ChainEdit:
        """`new` in the place of `old`.

        Raises:
            BrokenChain: when `old` is not there or `new` is.
        """
        if new in self:
            raise BrokenChain(f"step {new} is in the chain already")
        return self._edited(((self._before(old), new), (new, self._next[old])), without=old)

    def _after(self, anchor: StepId | None) -> StepId | None:
        if anchor is None:
            return self.first
        if anchor not in self:
            raise BrokenChain(f"step {anchor} is not in the chain")
        return self._next[anchor]

    def _before(self, step: StepId) -> StepId | None:
        if step not in self:
            raise BrokenChain(f"step {step} is not in the chain")
        if step == self.first:
            return None
        return next(before for before in self if self._next[before] == step)

    def _edited(
        self, links: tuple[tuple[StepId | None, StepId | None], ...], *, without: StepId | None = None
    ) -> ChainEdit:
        """Sets each (step, next step); a step of None stands for the head of the chain."""
        following = dict(self._next)
        first = self.first
        if without is not None:
            del following[without]
        for step, after in links:
            if step is None:
                first = after
            else:
                following[step] = after
        changed = tuple(StepLink(step, after) for step, after in links if step is not None)
        return ChainEdit(StepChain(first, following), changed, without)


@dataclass(frozen=True, slots=True)
class ChainEdit:
    """An edited chain, and exactly what differs: links to write (at most three) and the step to delete."""

    chain: StepChain
    changed: tuple[StepLink, ...]
    removed: StepId | None


def unmoved(before: Sequence[Item], after: Sequence[Item]) -> frozenset[Item]:
    """Of what is in both orders, the most that can stay where it is: all others are the fewest that must move.

    Neither order names anything twice. Where several choices are equally large, the same one is made every time.
    """
    place = {item: number for number, item in enumerate(before)}
    # The longest rising subsequence of the old places, by patience sorting: `lowest[n]` is the lowest place on
    # which a rising run of n + 1 items can end, and each item remembers the one that it follows in its run.
    lowest: list[int] = []
    ends: list[Item] = []
    follows: dict[Item, Item | None] = {}
    for item in after:
        if item not in place:
            continue
        length = bisect_left(lowest, place[item])
        follows[item] = ends[length - 1] if length else None
        lowest[length : length + 1] = [place[item]]
        ends[length : length + 1] = [item]
    stay: set[Item] = set()
    last = ends[-1] if ends else None
    while last is not None:
        stay.add(last)
        last = follows[last]
    return frozenset(stay)
