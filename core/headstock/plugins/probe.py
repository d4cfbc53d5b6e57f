"""Whether a backend's hardware and software are here: the answer of its probe."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.Enum):
    """The three answers of a probe."""

    AVAILABLE = "available"
    ABSENT = "absent"
    """No such hardware, or its extra is not installed: a remedy says how to get it."""
    BROKEN = "broken"
    """Hardware and software are there and do not work together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedDevice:
    """One device that a probe found, as far as it can be known without opening it.

    Attributes:
        index: As in ``--device-index``.
        name: What people call it.
        arch: The backend's own word for what code it runs, such as ``sm_90`` or ``avx2``.
        memory_bytes: Its memory, or None when that cannot be known cheaply.
        is_host: It is the host's own processor: several ranks share it, each with some cores.
    """

    index: int
    name: str
    arch: str
    memory_bytes: int | None = None
    is_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Answer of ``headstock_probe``.

    Attributes:
        status: See :class:`Status`.
        reason: What was looked for and found, or why it cannot be used.
        remedy: What to do about it; empty when AVAILABLE.
        score: Among AVAILABLE backends the highest serves: reference 0, CPUs 10, accelerators 100.
        devices: What was found.
        is_default: Whether it may serve without being named; False: ``--backend`` must name it.
    """

    status: Status
    reason: str
    remedy: str = ""
    score: int = 0
    devices: tuple[ProbedDevice, ...] = ()
    is_default: bool = True
