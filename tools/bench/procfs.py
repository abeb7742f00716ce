"""What processes cost: CPU time with all children, and memory, from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


@dataclass(frozen=True)
class Stat:
    """Of one process: who started it, and the seconds of itself and of children that have ended."""

    parent: int
    cpu_seconds: float


def parse_stat(text: str) -> Stat:
    """A /proc stat line; the program's name may hold spaces and brackets."""
    fields = text.rpartition(")")[2].split()
    user, system, children_user, children_system = map(int, fields[11:15])
    return Stat(int(fields[1]), (user + system + children_user + children_system) * _TICK)


def all_stats(proc: Path = PROC) -> dict[int, Stat]:
    """Every process of this moment by its pid."""
    found = {}
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = parse_stat((entry / "stat").read_text())
    return found


def tree_seconds(stats: Mapping[int, Stat], root: int) -> float:
    """CPU seconds of a process, of its living descendants and of those that have ended."""
    if root not in stats:
        raise ProcessLookupError(f"process {root} has ended")
    total, level = 0.0, {root}
    while level:
        total += sum(stats[pid].cpu_seconds for pid in level)
        level = {pid for pid, stat in stats.items() if stat.parent in level}
    return total


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """By name, from one look at /proc."""
    stats = all_stats()
    return {name: tree_seconds(stats, pid) for name, pid in pids.items()}


@dataclass(frozen=True)
class Memory:
    """PSS counts a page that n processes share as 1/n in each."""

    rss_bytes: int
    pss_bytes: int


def parse_rollup(text: str) -> Memory:
    """/proc/<pid>/smaps_rollup."""
    sizes = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            sizes[words[0]] = int(words[1]) * 1024
    return Memory(sizes["Rss:"], sizes["Pss:"])


def memory(pid: int) -> Memory:
    return parse_rollup((PROC / str(pid) / "smaps_rollup").read_text())
