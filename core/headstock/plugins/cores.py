"""The host's cores and memory nodes: what a backend computes on, and which of it a rank takes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class MemoryNodes:
    """One processor of each core that this process may use, by memory node.

    Attributes:
        cores: A tuple for each node that has any; the lowest processor of each core.
        reason: Why threads keep to these, or why not, in a few words.
        is_bound: Whether they should: there are several nodes, and each core is in one of them.
    """

    cores: tuple[tuple[int, ...], ...]
    reason: str
    is_bound: bool

    @property
    def in_order(self) -> list[int]:
        """The cores, node by node; empty where threads are better left to the system.

        Threads that stay on theirs find what they were first to write, such as the weights that
        they packed, in their own node's memory.
        """
        return [cpu for node in self.cores for cpu in node] if self.is_bound else []


def num_compute_threads(root: Path = ROOT) -> int:
    """Return the physical cores that this process may use: hyperthreads share the vector units.

    A container's share of processor time counts too, rounded up.

    Args:
        root: Where ``sys`` is.
    """
    cores = len(physical_cores(root))
    quota = time_quota(root / "sys/fs/cgroup/cpu.max")
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def processors() -> set[int]:
    """Return the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(root: Path = ROOT) -> dict[str, list[int]]:
    """Return the processors of each core that this process may run on, by the core's name."""
    found: dict[str, list[int]] = {}
    for cpu in sorted(processors()):
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        found.setdefault(_read(siblings) or str(cpu), []).append(cpu)
    return found


def memory_nodes(root: Path = ROOT) -> MemoryNodes:
    """Read which cores are near which memory; threads are bound to none that do not make sense."""
    cores = {cpus[0] for cpus in physical_cores(root).values()}
    folders = root.glob("sys/devices/system/node/node[0-9]*")
    nodes: list[tuple[int, ...]] = []
    for folder in sorted(folders, key=lambda node: int(node.name[4:])):
        text = _read(folder / "cpulist")
        try:
            here = numbers(text)
        except ValueError:
            return MemoryNodes((), f"{folder.name} has the processors {text!r}", is_bound=False)
        if here:  # Else it has memory only.
            nodes.append(tuple(cpu for cpu in here if cpu in cores))
    if len(nodes) < 2:
        return MemoryNodes((tuple(sorted(cores)),), "one memory node", is_bound=False)
    listed = sorted(cpu for node in nodes for cpu in node)
    mine = tuple(node for node in nodes if node)
    if listed != sorted(cores):
        odd = sorted({cpu for cpu in listed if listed.count(cpu) > 1} or cores - set(listed))
        return MemoryNodes(mine, f"processors {odd} are not in one node each", is_bound=False)
    return MemoryNodes(mine, f"{len(nodes)} memory nodes", is_bound=True)


def share_of(rank: int, size: int, root: Path = ROOT) -> set[int]:
    """Return the processors for one of several ranks: whole cores, node by node.

    So ranks compute beside each other, on memory of their own, where there are as many nodes.

    Args:
        rank: Of the ranks on this host.
        size: How many there are.
        root: Where ``sys`` is.

    Returns:
        Processors; all that this process may use where there is one node, or too few cores.
    """
    assert 0 <= rank < size, f"rank {rank} of {size}"
    cores = memory_nodes(root).in_order
    each = len(cores) // size
    if not each:
        return processors()
    mine = set(cores[rank * each : (rank + 1) * each])
    return {cpu for cpus in physical_cores(root).values() if cpus[0] in mine for cpu in cpus}


def take_share(rank: int, size: int, root: Path = ROOT) -> None:
    """Keep this process, with the threads that it will start, to its share of the host's cores."""
    if hasattr(os, "sched_setaffinity"):
        mine = share_of(rank, size, root)
        if mine != processors():
            os.sched_setaffinity(0, mine)


def numbers(ranges: str) -> list[int]:
    """Return the numbers of a list such as ``0-3,8``.

    Raises:
        ValueError: It is no such list.
    """
    found: list[int] = []
    for part in filter(None, ranges.split(",")):
        first, is_range, last = part.partition("-")
        begin, end = int(first), int(last if is_range else first)
        if end < begin:
            raise ValueError(part)
        found += range(begin, end + 1)
    return found


def described(cores: Iterable[Iterable[int]]) -> str:
    """Return the processors of each node in a line, such as ``0 2 | 1 3``."""
    return " | ".join(" ".join(map(str, node)) for node in cores)


def time_quota(path: Path) -> float | None:
    """Return the processors' worth of time that a container may use, or None."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
