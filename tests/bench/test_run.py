"""The bench tells what it measured, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.embedded_postgres import EmbeddedPostgres
from tests.bench import rows, run
from tests.bench.clients import Record, unexpected
from tests.bench.machine import Unfair
from tests.bench.rows import Bench, Figure, Round, contest
from tests.bench.seed import Scale

_FEW = Scale(400, walkthroughs=10, steps=8, learners=20, is_alone=True)


def _round(answers: int, *, others: float = 0.0) -> Round:
    return Round(Record(1.0, {"advanced": answers}, [1_000] * answers, 0.0), 0.5, 0.1, others)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that nobody else uses."""
    monkeypatch.setattr(rows, "_await_quiet", lambda: None)


def test_whether_a_goal_holds_is_told_only_where_there_is_a_goal_and_a_figure() -> None:
    assert [
        Figure("a", 2.0, at_most=2.0).holds,
        Figure("b", 2.01, at_most=2.0).holds,
        Figure("c", 0.5, at_least=0.5).holds,
        Figure("d", 0.49, at_least=0.5).holds,
        Figure("e", 1.0).holds,
        Figure("f", None, at_most=2.0).holds,
    ] == [True, False, True, False, None, None]


def test_a_round_in_which_others_used_the_machine_does_not_count(quiet: None) -> None:
    found = contest([lambda number: _round(100, others=0.5 if number == 1 else 0.0), lambda _: _round(50)], 4)
    assert [[each.rate for each in one] for one in found] == [[100, 50]] * 3


def test_where_too_few_rounds_count_nothing_is_told(quiet: None) -> None:
    with pytest.raises(Unfair, match="others used the machine in 2 of 4 rounds"):
        contest([lambda number: _round(100, others=number % 2)], 4)


def test_nobody_is_always_the_first(quiet: None) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[int], Round]:
        return lambda _: order.append(name) or _round(1)  # type: ignore[func-returns-value]

    contest([noting("a"), noting("b")], 4)
    assert "".join(order) == "abbaabba"


def _told(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    **comparisons: tuple[Callable[[Bench], Iterator[Figure]], list[Figure]],
) -> int:
    monkeypatch.setattr(run, "_FOLDER", tmp_path)
    monkeypatch.setattr(run, "COMPARISONS", comparisons)
    monkeypatch.setattr("sys.argv", ["run"])
    before = os.sched_getaffinity(0)
    try:
        return run.main()
    finally:
        os.sched_setaffinity(0, before)


def test_what_cannot_be_measured_fairly_is_left_out_by_name_and_misses_no_goal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Figure("one thing", at_most=2.0), Figure("without a peer", at_least=1.0), Figure("this", at_most=3.0)]

    def compare(_: Bench) -> Iterator[Figure]:
        yield rows[0].of(1.5)
        yield rows[1].left_out("FastMCP is not installed")
        raise Unfair("others use 1.4 cores of this machine")

    assert _told(monkeypatch, tmp_path, these=(compare, rows)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["one", "thing", "≤", "2×", "1.50×", "yes"]
    assert lines[4].split("left out")[1].strip() == "FastMCP is not installed"
    assert lines[5].split()[:5] == ["this", "≤", "3×", "left", "out"]
    assert lines[5].endswith("others use 1.4 cores of this machine")
    assert lines[7].endswith("missed: none; left out: without a peer, this; failed: none")


def test_a_comparison_that_fails_takes_no_other_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, sound = Figure("broken", at_most=2.0), Figure("sound", at_most=2.0)

    def broken(_: Bench) -> Iterator[Figure]:
        raise RuntimeError("the load generator failed")
        yield row

    assert _told(monkeypatch, tmp_path, one=(broken, [row]), two=(lambda _: iter([sound.of(1.0)]), [sound])) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:4] == ["broken", "≤", "2×", "failed"]
    assert lines[3].endswith("RuntimeError: the load generator failed")
    assert lines[4].split() == ["sound", "≤", "2×", "1.00×", "yes"]
    assert lines[6].endswith("missed: none; left out: none; failed: broken")


def test_an_answer_that_is_an_error_never_counts() -> None:
    assert unexpected("next_walkthrough_step", {"advanced", "restarted", "completed", "stuck"}) == {"stuck"}
    assert unexpected("select_walkthrough", {"started", "resumed", "429"}) == {"429"}
    assert unexpected("list_walkthroughs", {"answered", '[{"type":"text"'}) == {'[{"type":"text"'}


def test_a_missed_goal_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = Figure("slow", at_most=2.0)
    assert _told(monkeypatch, tmp_path, this=(lambda _: iter([slow.of(3.0)]), [slow])) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("missed: slow; left out: none; failed: none")


def test_a_comparison_that_there_is_not_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run", "advanse"])
    assert run.main() == 2
    assert capsys.readouterr().out.startswith("There is no comparison 'advanse': there are advance, list, ")


@pytest.mark.skipif(os.cpu_count() == 1, reason="it takes two cores")
def test_the_advances_that_are_told_are_the_ones_that_were_stored(
    quiet: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole of one comparison, for a moment and with whatever else goes on: its figures mean nothing here."""
    monkeypatch.setattr(rows, "_LONG", _FEW)
    monkeypatch.setattr(rows, "_SECONDS", 0.2)
    monkeypatch.setattr(rows, "_OTHERS_CORES", 99.0)
    with EmbeddedPostgres(tmp_path / "postgres") as postgres:
        figures = {figure.name: figure for figure in rows.advance(Bench(postgres, tmp_path))}
    assert figures["advance: CPU, to a no-op tool"].value is not None
    statements = figures["advance: statements, the log included"].value
    assert statements is not None
    assert 2.0 <= statements < 2.5  # the token and the commit, and what those take who begin anew
