"""One comparison of the kit, and what case generators share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headstock.ops.base import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of an op.

    Attributes:
        label: What is special about it, in a few words: the report names it.
        spec: What the op is resolved for; a provider that refuses it is not asked.
        args: Of the call: of the function, or of the builder for a built op.
        kwargs: Likewise.
        use: For built ops: takes what the builder returned to the tensors to compare.
        expected: Computes what should come out; None: the reference does.
        num_real: Rows of the results that count; the rest is padding. None: all.
    """

    label: str
    spec: Spec
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    use: Callable[[Any], Any] | None = None
    expected: Callable[[], Any] | None = None
    num_real: int | None = None

    def outcome(self, run: Callable[..., Any]) -> tuple[Tensor, ...]:
        """Return what ``run`` makes of this case; it gets copies of the tensors."""
        result = run(*(_copy(arg) for arg in self.args), **_copies(self.kwargs))
        if self.use is not None:
            result = self.use(result)
        return as_tensors(result)


def as_tensors(result: Any) -> tuple[Tensor, ...]:
    """Return an op's result, one tensor or several, as a tuple."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


class Draw:
    """Random tensors that are the same on every device: drawn on the host.

    Args:
        device: Where they go.
        seed: Two generators with the same seed draw the same.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1) -> Tensor:
        """Return normally distributed numbers of deviation ``scale``."""
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype).to(self.device)

    def uniform(self, *shape: int, low: float = 0, high: float = 1) -> Tensor:
        """Return float32 numbers in [low, high)."""
        drawn = torch.rand(shape, generator=self.generator) * (high - low) + low
        return drawn.to(self.device)

    def integers(
        self, *shape: int, low: int = 0, high: int, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """Return whole numbers in [low, high)."""
        drawn = torch.randint(low, high, shape, generator=self.generator)
        return drawn.to(dtype).to(self.device)


def _copies(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) for name, value in kwargs.items()}


def _copy(value: Any) -> Any:
    """Return a copy with the same strides; what is no tensor is returned as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return copy.copy_(value)
