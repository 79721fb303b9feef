"""The short form of `make torture`: each fault once, for as long as it takes to have calls run into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.torture.faults import ROWS, CannotHappen, Row, Stage
from tests.torture.run import HEADING, Template, make_template, seed_of_run, staged, torture


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("torture") / "template"))


@pytest.fixture(scope="module")
async def stage(template: Template, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One cluster and one service for all rows that take one worker: to start them takes longer than a row."""
    rows = [row for row in ROWS if row.workers == 1]
    async with staged(rows, template, tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module")
async def stage_of_several(template: Template, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The same for those that take several."""
    rows = [row for row in ROWS if row.workers > 1]
    async with staged(rows, template, tmp_path_factory.mktemp("stage-of-several")) as made:
        yield made


@pytest.mark.promise("crash.nothing-lost", "resume.after-restart", "unavailable", "calls.logged")
@pytest.mark.parametrize("row", [row for row in ROWS if row.workers == 1], ids=lambda row: row.name)
async def test_a_fault_under_load_loses_nothing_and_is_over_when_it_is_over(
    row: Row, template: Template, stage: Stage
) -> None:
    await _hold(row, template, stage)


@pytest.mark.promise("crash.nothing-lost", "calls.logged")
@pytest.mark.parametrize("row", [row for row in ROWS if row.workers > 1], ids=lambda row: row.name)
async def test_of_several_workers_one_that_is_killed_takes_nothing_along_nor_does_their_parent(
    row: Row, template: Template, stage_of_several: Stage
) -> None:
    await _hold(row, template, stage_of_several)


async def _hold(row: Row, template: Template, stage: Stage) -> None:
    try:
        report = await torture(row, template, stage, seed=seed_of_run())
    except CannotHappen as reason:
        pytest.skip(f"{row.name}: {reason}")
    print(f"\n{HEADING}\n{report.line()}")
    assert report.problems == [], f"seed {report.seed}"
