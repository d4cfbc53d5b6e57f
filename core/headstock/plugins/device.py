"""A device in use: memory, capture and the transfer of results. What the runner calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headstock.ops.device import OpDevice

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of device memory.

    Attributes:
        total: There is.
        free: Not taken by any process.
        peak: Most that this process had at once since :meth:`Device.reset_peak`.
    """

    total: int
    free: int
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What the core must know of a device to serve it well. It asks facts, never who it is.

    Attributes:
        shares_host_memory: Its memory is the host's, which others need too.
        default_slots: Requests it computes at once unless the operator says otherwise.
        default_step_tokens: Likewise tokens of a step.
        is_functional: A write in place makes a new value of that tensor: what is seen of it through
            a view with another dtype is a copy.
        has_strided_pages: Pages of a layer may lie apart, with other layers' in between: page
            groups of a model with several then share one piece of memory.
        captures_on_use: A capture costs about as much as the step itself: what was not captured
            before serving is captured when it is first met. Others run such steps eagerly.
        compiles_sizes: Whatever runs is compiled for each size that it is met with: sizes are
            padded to few, and all that serving can meet is met before.
        needs_host_lengths: Attention's kernels take the lengths of rows from the host. Every batch
            has ``host_rows`` then, captured ones too, and attention plans before every replay.
            Needs a depth of 1: lengths are exact only where no step is in flight.
        gives_memory_back: What tensors took can go back to the system while the process lives, see
            :meth:`Device.trim`: a server that sleeps gives its pages up.
    """

    shares_host_memory: bool = False
    default_slots: int = 256
    default_step_tokens: int = 8192
    is_functional: bool = False
    has_strided_pages: bool = False
    captures_on_use: bool = False
    compiles_sizes: bool = False
    needs_host_lengths: bool = False
    gives_memory_back: bool = False


@dataclass(frozen=True, slots=True)
class GraphKey:
    """Which captured half of a step fits.

    Attributes:
        kind: A forward pass whose rows are ``uniform`` (each has ``query`` tokens) or ``ragged``,
            or the ``draws`` after one.
        num_tokens: T the step is padded to; of draws the positions that are drawn from.
        num_rows: R the step is padded to.
        query: Tokens a row of a uniform step; else positions that a row draws from.
        provider: What attention baked in.
        features: Draw kinds of draws; of a forward pass ``adapters`` where rows have any, ``draws``
            where greedy draws follow it.
    """

    kind: str
    num_tokens: int
    num_rows: int
    query: int = 0
    provider: tuple[int, ...] = ()
    features: frozenset[str] = frozenset()


class GraphPolicy(Protocol):
    """Which steps a device captures, and what they are padded to."""

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        """Return (T, R) to pad a step to, or None to run it eagerly at its own size."""
        ...

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        """Return the (T, R, is_uniform) to capture before serving."""
        ...


class Graph(Protocol):
    """A captured step: the same work on the same addresses, again."""

    def replay(self) -> None:
        """Queue it."""
        ...


class Transfer(Protocol):
    """A copy to the host that is under way."""

    def wait(self) -> Tensor:
        """Wait for it and return the host tensor; valid until the next transfer of its buffer.

        Called outside of inference mode, in which steps are queued; the buffer is none of its
        tensors and may be written to.
        """
        ...


class Device(OpDevice, Protocol):
    """One device, opened by this process."""

    @property
    def name(self) -> str:
        """What people call it, for the banner."""
        ...

    @property
    def facts(self) -> DeviceFacts:
        """What the core must know of it."""
        ...

    @property
    def depth(self) -> int:
        """Steps worth keeping in flight: 1 where the host computes them itself, else 2."""
        ...

    @property
    def default_dtype(self) -> torch.dtype | None:
        """What to compute in where no dtype is set; None: the checkpoint's own dtype."""
        ...

    @property
    def graph_policy(self) -> GraphPolicy:
        """What to capture."""
        ...

    def memory(self) -> Memory:
        """Read the memory figures now."""
        ...

    def reset_peak(self) -> None:
        """Start a new measurement of ``Memory.peak``."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory that lives as long as the tensor, for weights and pages."""
        ...

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return zeroed host memory that copies to the device without waiting."""
        ...

    def fetch(self, source: Tensor, into: Tensor) -> Transfer:
        """Start copying ``source`` to the host buffer ``into``, after all that is queued."""
        ...

    def capture(self, key: GraphKey, step: Callable[[], None]) -> Graph:
        """Run ``step`` and record it; its memory belongs to the graph and those captured after.

        Called only for steps that ``graph_policy`` gave a bucket.
        """
        ...

    def cut(self) -> None:
        """Start what was asked for as a program of its own, apart from what follows.

        Needed where ``facts.compiles_sizes``, and called nowhere else.
        """
        ...

    def trim(self) -> None:
        """Give memory that no tensor and no graph takes back to the system.

        Needed where ``facts.gives_memory_back``, and called nowhere else; no step is in flight,
        and every captured graph has been dropped.
        """
        ...

    def synchronize(self) -> None:
        """Wait for all that is queued. Never on the path of a token."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...
