"""What Linux says of the machine and of processes: who used how much of the processor, and how much memory is held."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Unfair(Exception):
    """Why something cannot be measured fairly here and now, in a sentence."""


def cores() -> Sequence[int]:
    """Those that this process may use: the first for what is measured, the second for everything else.

    Raises:
        Unfair: when there is only one.
    """
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise Unfair("it takes two cores, one for what is measured and one for those who ask")
    return found[:2]


def pin(pids: Iterable[int], cores: Iterable[int]) -> None:
    """Keeps processes, with all their threads, to some cores. Whatever they start later is kept there too."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in (_PROC / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(thread.name), set(cores))


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there still, and those that they have."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for thread in (_PROC / str(pid) / "task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that processes have used so far, to the nanosecond. One that has ended meanwhile counts as 0."""
    total = 0
    for pid in pids:
        try:
            for thread in (_PROC / str(pid) / "task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9


def ended_children_seconds(pid: int) -> float:
    """Processor time of the children of a process that have ended, and of theirs."""
    *_, after_name = (_PROC / str(pid) / "stat").read_text().rpartition(")")
    user, system = after_name.split()[13:15]  # 16 and 17 of proc(5), whose third is the first after the name
    return (int(user) + int(system)) * _TICK


def busy_seconds() -> float:
    """Processor time that everybody on this machine has used so far, and what other machines took of it."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, (_PROC / "stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK


def resident_bytes(pid: int) -> int:
    """What a process holds in memory."""
    return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE


@dataclass
class Load:
    """What others use of the machine, while something is measured."""

    began: float
    busy: float

    @classmethod
    def now(cls) -> Load:
        """From now on."""
        return cls(time.monotonic(), busy_seconds())

    def of_others(self, ours: float) -> float:
        """How many cores others have used since, `ours` being the processor time that we know of."""
        return max(0.0, busy_seconds() - self.busy - ours) / (time.monotonic() - self.began)


def description() -> str:
    """This machine, in a line."""
    model = re.search(r"model name\s*:\s*(.*)", (_PROC / "cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * _PAGE / 2**30
    virtual = ", virtual" if "hypervisor" in (_PROC / "cpuinfo").read_text() else ""
    name = model[1] if model else platform.machine()
    return (
        f"{len(os.sched_getaffinity(0))} cores ({name}{virtual}), {memory:.0f} GiB, Linux "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}"
    )
