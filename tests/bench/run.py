"""`make bench`: how fast Cairn does what it exists for, and what becomes of that as it grows: docs/performance.md.

python -m tests.bench.run [the beginning of a comparison's name]

The exit status is 1 where a goal is missed, or a comparison failed. What cannot be measured fairly is left out by name,
and no figure of it is told.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from adapters.embedded_postgres import EmbeddedPostgres
from tests.bench.machine import Unfair, cores, description, pin
from tests.bench.rows import COMPARISONS, Bench, Figure
from tests.processes import PROJECT

# Kept for the next run: a few gigabytes.
_FOLDER = PROJECT / ".bench"


def main() -> int:
    """Runs the comparisons that are asked for, and prints a line for each figure as it is there."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [comparison for name, comparison in COMPARISONS.items() if name.startswith(asked)]
    if not chosen:
        print(f"There is no comparison {asked!r}: there are {', '.join(COMPARISONS)}.")
        return 2
    print(description(), flush=True)
    print(f"\n{'what':<72} {'goal':>12} {'figure':>12}  holds", flush=True)
    figures: list[Figure] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as logs, EmbeddedPostgres(_FOLDER) as postgres:
        pid = postgres.pid
        assert pid is not None
        for compare, rows in chosen:
            untold = list(rows)
            without: list[Figure] = []
            try:
                pin([pid], {cores()[1]})
                for figure in compare(Bench(postgres, Path(logs))):
                    untold = [row for row in untold if row.name != figure.name]
                    figures.append(figure)
                    print(_line(figure), flush=True)
            except Unfair as unfair:
                without = [row.left_out(str(unfair)) for row in untold]
            except Exception as error:  # noqa: BLE001  # one comparison that fails takes none of the others along
                without = [row.failed(f"{type(error).__name__}: {error}") for row in untold]
            figures += without
            for figure in without:
                print(_line(figure), flush=True)
    missed = [figure.name for figure in figures if figure.holds is False]
    out = [figure.name for figure in figures if figure.value is None and not figure.has_failed]
    failed = [figure.name for figure in figures if figure.has_failed]
    seconds = time.monotonic() - began
    print(f"\n{len(figures)} figures in {seconds / 60:.0f} min; missed: {', '.join(missed) or 'none'}; ", end="")
    print(f"left out: {', '.join(out) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return 1 if missed or failed else 0


def _line(figure: Figure) -> str:
    if figure.at_most is not None:
        goal = f"≤ {figure.at_most:.4g}{figure.unit}"
    elif figure.at_least is not None:
        goal = f"≥ {figure.at_least:.4g}{figure.unit}"
    else:
        goal = "—"
    if figure.value is None:
        said = "failed" if figure.has_failed else "left out"
        return f"{figure.name:<72} {goal:>12} {said:>12}  {figure.note}"
    said = {True: "yes", False: "NO", None: "—"}[figure.holds]
    value = f"{figure.value:.0f}{figure.unit}" if figure.value >= 100 else f"{figure.value:.2f}{figure.unit}"
    return f"{figure.name:<72} {goal:>12} {value:>12}  {said:<4} {figure.note}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
