"""What processes hold: memory of their own, descriptors, threads, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Sample:
    """One look at a process."""

    at_s: float
    anon_mb: float
    """Anonymous memory, resident or swapped out: what a leak makes larger. MB."""
    descriptors: int
    threads: int


def anon_mb(pid: int) -> float:
    """Return RssAnon + VmSwap of a process. MB (10**6 bytes)."""
    kib = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "VmSwap"):
            kib += int(rest.split()[0])
    return kib * 1024 / 1e6


def family(pid: int) -> dict[int, str]:
    """Return a server's processes by id: what each is for."""
    found = {pid: "api"}
    for child in psutil.Process(pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        modules = [word.removeprefix("headstock.") for word in words if "headstock." in word]
        scripts = [Path(word).stem for word in words if word.endswith(".py")]
        found[child.pid] = next(iter([*modules, *scripts]), child.name())
    return found


def look(pid: int, at_s: float) -> Sample | None:
    """Return a sample of a process; None: it has ended."""
    try:
        process = psutil.Process(pid)
        return Sample(at_s, anon_mb(pid), process.num_fds(), process.num_threads())
    except (psutil.Error, OSError):
        return None


def slope_per_minute(samples: Sequence[Sample]) -> float:
    """Return by how much memory grows, by least squares. MB a minute."""
    count = len(samples)
    if count < 2:
        return 0.0
    mean_s = sum(sample.at_s for sample in samples) / count
    mean_mb = sum(sample.anon_mb for sample in samples) / count
    above = sum((sample.at_s - mean_s) * (sample.anon_mb - mean_mb) for sample in samples)
    below = sum((sample.at_s - mean_s) ** 2 for sample in samples)
    return 60 * above / below
