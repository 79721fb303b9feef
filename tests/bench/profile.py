"""Where an advance spends its time in the process, as a table.

python -m tests.bench.profile     counts function calls and their time with cProfile, under the load of the bench

cProfile makes whatever is made of many small calls look slower than it is. What is compared should be the shares, and
the number of calls.
"""

from __future__ import annotations

import cProfile
import pstats
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from adapters.embedded_postgres import EmbeddedPostgres
from tests.bench.clients import Task
from tests.bench.rows import _LONG, CONNECTIONS, Bench, _people
from tests.bench.services import ask, cairn
from tests.processes import PROJECT

_CALLS = 5_000
# The first that is found in a file's path.
_LAYERS = {
    "/h11/": "h11: reading and writing HTTP",
    "uvicorn": "uvicorn",
    "entrypoints/http": "connections, watch, gate",
    "entrypoints/mcp": "MCP: call, arguments, rendering, answer",
    "/mcp": "MCP: the SDK's checks",
    "pydantic": "MCP: the SDK's checks",
    "application": "use case",
    "domain": "rules",
    "adapters/postgres": "stores and call log",
    "asyncpg": "asyncpg",
    "sqlalchemy": "SQLAlchemy",
    "adapters": "limits, ids, clock",
    "nanoid": "limits, ids, clock",
    "entrypoints": "log line",
    "prometheus": "figures",
    "asyncio": "asyncio: tasks, timeouts",
}


def _layer(file: str) -> str:
    """Of a file; paths of ours begin with the project's."""
    own = file.removeprefix(f"{PROJECT}/")
    if ".venv" in own:
        own = own.partition("site-packages")[2]
    return next((name for part, name in _LAYERS.items() if part in own), "the rest of Python's library")


def serve() -> None:
    """`cairn serve` under the profiler; the first argument is where its statistics go."""
    import uvicorn

    target = sys.argv.pop(1)
    profile, main_loop = cProfile.Profile(), uvicorn.Server.main_loop

    async def profiled(server: Any) -> None:
        profile.enable()
        try:
            await main_loop(server)
        finally:
            profile.disable()
            profile.dump_stats(target)

    uvicorn.Server.main_loop = profiled  # type: ignore[method-assign]
    from entrypoints.cli.main import main

    main()


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(PROJECT / ".bench") as postgres:
        database = Bench(postgres, Path(folder)).database("long", _LONG)
        statistics = Path(folder) / "statistics"
        code = f"import sys; sys.argv[1:1] = [{str(statistics)!r}]; from tests.bench.profile import serve; serve()"
        with cairn(database.service_url, Path(folder), program=("-c", code)) as service:
            walkers = _people(database.learners()[:CONNECTIONS])
            done = ask(Task(service.port, "next_walkthrough_step", walkers, CONNECTIONS, calls=_CALLS))
            service.process.send_signal(signal.SIGINT)
            service.process.wait()
        found = pstats.Stats(str(statistics)).stats  # type: ignore[attr-defined]
    calls = sum(done.told.values())
    time: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for (file, _, _), (_, number, own, _, callers) in found.items():
        if file == "~":  # C, which counts for whoever called it
            for (caller, _, _), (_, from_there, its, _) in callers.items():
                time[_layer(caller)] += its
                count[_layer(caller)] += from_there
        else:
            time[_layer(file)] += own
            count[_layer(file)] += number
    total = sum(time.values())
    print(f"{'where':<44} {'share':>6} {'calls':>7}")
    for layer, seconds in time.most_common():
        print(f"{layer:<44} {seconds / total:>6.0%} {count[layer] / calls:>7.0f}")
    print(f"{'in all':<44} {'':>6} {sum(count.values()) / calls:>7.0f}")


if __name__ == "__main__":
    main()
