"""One probe after another: with one's own names, with another's among them, with nobody's."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from adapters.postgres.connections import Access, PoolableConnection
from tests.isolation.tenants import KINDS, OF_A_SERVER, OF_AN_ORGANIZATION, Names, Noted

Act = Callable[[Names], Awaitable[Any]]

# Few pairs tell that nothing is the matter; where they do not, there are more, and at last these decide.
_PAIRS = (8, 16, 32, 64, 128)
_LEAST = 96
# What is sent is compared statement by statement, so that time need only show what one of them does too much.
_FACTOR = 1.5


@dataclass(frozen=True)
class Told:
    """How an action ended: what was told, what was changed by it, and which statements that took."""

    answer: str
    gone: Sequence[str]
    new: Sequence[str]
    statements: Sequence[str]

    @property
    def changes(self) -> Sequence[str]:
        return [*self.gone, *self.new]

    def hiding(self, names: Names, these: Set[str]) -> Told:
        return Told(
            names.hidden(self.answer, these),
            sorted(names.hidden(row, these) for row in self.gone),
            sorted(names.hidden(row, these) for row in self.new),
            self.statements,
        )


class Statements:
    """Takes note of every statement that is sent, on either pool."""

    def __init__(self) -> None:
        self.sent = sent = []  # type: list[str]
        self.passing: Set[str] = frozenset()
        """Those that are sent now and then, whoever asks: by what is remembered for a while."""

        class NotingConnection(PoolableConnection):
            def __init__(self, *given: Any, **named: Any) -> None:
                super().__init__(*given, **named)
                self.add_query_logger(lambda query: sent.append(query.query))

        self.connection_class: type[PoolableConnection] = NotingConnection

    @contextmanager
    def noted(self) -> Iterator[None]:
        def note(_: Any, __: Any, statement: str, *___: Any) -> None:
            self.sent.append(statement)

        event.listen(Engine, "before_cursor_execute", note)
        yield
        event.remove(Engine, "before_cursor_execute", note)


@dataclass(frozen=True, slots=True)
class NotingAccess(Access):
    """The access of a service whose statements are taken note of."""

    connection_class: type[PoolableConnection] = PoolableConnection

    def connect_arguments(self) -> dict[str, Any]:
        return {**Access.connect_arguments(self), "connection_class": self.connection_class}


@dataclass
class Tables:
    """All that is stored, which can be seen, and made as it was."""

    owner: asyncpg.Connection  # type: ignore[type-arg]
    names: Sequence[str] = field(default_factory=list)
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Every row that there is as long as nothing is done, with its table."""

    async def keep(self) -> None:
        """Makes what is stored now what is come back to."""
        rows = await self.owner.fetch(
            "select relname from pg_class where relkind in ('r', 'p') and not relispartition"
            " and relnamespace = 'public'::regnamespace and relname <> 'alembic_version' order by relname"
        )
        self.names = [name for (name,) in rows]
        await self.owner.execute("create schema kept")
        await self.owner.execute(";".join(f"create table kept.{each} as table {each}" for each in self.names))
        self.kept = await self.rows()

    async def restore(self, tables: Collection[str] | None = None) -> None:
        """No trigger and no constraint has a say in it."""
        each = ";".join(
            f"delete from {name}; insert into {name} table kept.{name}" for name in sorted(tables or self.names)
        )
        await self.owner.execute(f"begin; set local session_replication_role = replica; {each}; commit")

    async def rows(self) -> Counter[tuple[str, str]]:
        """Every row; of a call, not which it was and when."""
        whole = {"tool_calls": " - '{id,created_at,duration_us}'::text[]"}
        statement = " union all ".join(
            f"select '{each}', (to_jsonb(its){whole.get(each, '')})::text from {each} its" for each in self.names
        )
        return Counter((name, row) for name, row in await self.owner.fetch(statement))


@dataclass
class Walk:
    """Goes from probe to probe, each in the same world."""

    tables: Tables
    statements: Statements
    home: Names
    foreign: Names
    sibling: Names
    absent: Names

    async def ends(self, act: Act, names: Names) -> Told:
        self.statements.sent.clear()
        answer = await _answer(act, names)
        await asyncio.sleep(0)  # the driver tells of a statement after it has answered
        statements = [each for each in self.statements.sent if each not in self.statements.passing]
        before, after = self.tables.kept, await self.tables.rows()
        gone, new = sorted((before - after).elements()), sorted((after - before).elements())
        if gone or new:
            await self.tables.restore({table for table, _ in (*gone, *new)})
        return Told(answer, [" ".join(row) for row in gone], [" ".join(row) for row in new], statements)

    async def probe(
        self,
        act: Act,
        *,
        changes: bool = False,
        of_a_server: Set[str] = OF_A_SERVER,
        statements: bool = True,
    ) -> None:
        """That it succeeds with one's own names; that another organisation's are as good as nobody's, in all mixtures;
        and that so are those of another server of one's own, where they are worth anything on one server only.

        With `changes`, nobody's names may leave something behind, too. Without `statements`, what is sent to find that
        out may differ.
        """
        noted = Noted.of(self.home)
        own = await self.ends(act, noted)
        everything = frozenset(noted.asked)
        lost = self.home.borrowing(self.absent, everything)
        missed = await self.ends(act, lost)
        assert own.hiding(self.home, everything) != missed.hiding(lost, everything), "it does not succeed"
        assert missed.statements
        assert [kind for kind in KINDS if getattr(self.foreign, kind) in own.answer] == []
        self._assert_own(own)
        kinds = everything - OF_AN_ORGANIZATION
        for others, may in ((self.foreign, kinds), (self.sibling, kinds & of_a_server)):
            for these in _mixtures(may):
                await self._assert_as_absent(act, others, these, changes=changes, statements=statements)

    async def _assert_as_absent(
        self, act: Act, others: Names, these: Set[str], *, changes: bool, statements: bool
    ) -> None:
        theirs, nobodys = self.home.borrowing(others, these), self.home.borrowing(self.absent, these)
        told, expected = await self.ends(act, theirs), await self.ends(act, nobodys)
        if not statements:
            expected = replace(expected, statements=told.statements)
        assert told.hiding(theirs, these) == expected.hiding(nobodys, these), sorted(these)
        assert changes or not told.changes, sorted(these)
        self._assert_own(told)

    def _assert_own(self, told: Told) -> None:
        """Whatever changed is of one's own organisation."""
        of_home = f'"organization_id": "{self.home.organization_id}"'
        assert [row for row in told.changes if of_home not in row] == []

    async def takes_as_long(self, act: Act) -> None:
        """That each of another organisation's names takes as long as one that nobody has."""
        noted = Noted.of(self.home)
        await self.ends(act, noted)
        for kind in noted.asked - OF_AN_ORGANIZATION:
            theirs, nobodys = self.home.borrowing(self.foreign, {kind}), self.home.borrowing(self.absent, {kind})
            # What is stored anew each time is not the same work each time.
            if not (await self.ends(act, theirs)).changes:
                assert not await differ_in_time(partial(_answer, act, theirs), partial(_answer, act, nobodys)), kind


async def differ_in_time(one: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]]) -> bool:
    """Whether one of the two takes longer, and by more than `_FACTOR`.

    Measured in pairs, now one first, now the other: where there is no difference, each pair is the toss of a coin,
    however much else the machine does. That `_LEAST` of the last `_PAIRS` fall on one side is then a matter of 1 in 50
    million. Fewer tell that there is nothing to decide: by the lower quartile, since a busy machine only adds.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for pairs in _PAIRS:
        for pair in range(len(times[0]), pairs):
            for which in (0, 1) if pair % 2 else (1, 0):
                began = time.perf_counter()
                await (one, other)[which]()
                times[which].append(time.perf_counter() - began)
        if _ratio(times, lambda each: statistics.quantiles(each)[0]) < _FACTOR:
            return False
    slower = sum(first > second for first, second in zip(*times, strict=True))
    return _ratio(times, statistics.median) >= _FACTOR and max(slower, pairs - slower) >= _LEAST


def _ratio(times: Sequence[list[float]], of: Callable[[list[float]], float]) -> float:
    shorter, longer = sorted(map(of, times))
    return longer / shorter


async def _answer(act: Act, names: Names) -> str:
    try:
        return repr(await act(names))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        return f"{type(error).__name__}: {error}"


def _mixtures(kinds: Set[str]) -> Iterator[Set[str]]:
    for size in range(1, len(kinds) + 1):
        for these in itertools.combinations(sorted(kinds), size):
            yield frozenset(these)
