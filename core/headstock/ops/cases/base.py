"""One comparison of the kit, and what case generators share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headstock.ops.base import Resolver, Spec
from headstock.ops.device import OpDevice
from headstock.ops.layouts import CanonicalLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where cases are made: the device, the dtype, and who computes the other ops there.

    Attributes:
        resolver: Of the backend under test. Cases that need another op's provider ask it.
        dtype: Of the activations.
        page_sizes: Tokens a page may hold; cases that need one size take the first.
        has_exact_rows: Whether the host knows the lengths of rows, as the device needs it to.
        layouts: Canonical layouts that plugins bring: products are tried with them, too.
    """

    resolver: Resolver
    dtype: torch.dtype
    page_sizes: tuple[int, ...] = (16,)
    has_exact_rows: bool = False
    layouts: tuple[CanonicalLayout, ...] = ()

    @property
    def device(self) -> OpDevice:
        """The device under test."""
        return self.resolver.device

    def draw(self, seed: int = 0) -> Draw:
        """Return a source of random tensors on the device."""
        return Draw(self.device.torch_device, seed)

    def spec(self, sizes: Mapping[str, int], layout: str = "", *, page_format: str = "") -> Spec:
        """Return the spec of a case in this bench's dtype."""
        dtype = dtype_name(self.dtype)
        return Spec(dtype=dtype, sizes=sizes, layout=layout, page_format=page_format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        label: What is special about it, in a few words: the report names it.
        spec: What the op is resolved for; a provider that refuses it is not asked.
        args: Of the call.
        kwargs: Likewise.
        writes: Which of ``args`` an implementation may write into.
        call: For built ops, and others that one plain call does not show: takes the implementation
            to the tensors to compare.
        expected: Computes what should come out; None: the reference does.
        check: Where several outcomes are right: says what is wrong with one, or None.
        num_real: Rows of the results that count; the rest is padding. None: all.
        tolerance: (relative, absolute), where more is allowed than the op's; None: the op's.
    """

    label: str
    spec: Spec
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    writes: frozenset[int] = frozenset()
    call: Callable[[Callable[..., Any]], Any] | None = None
    expected: Callable[[], Any] | None = None
    check: Callable[[tuple[Tensor, ...]], str | None] | None = None
    num_real: int | None = None
    tolerance: tuple[float, float] | None = None

    def outcome(self, run: Callable[..., Any]) -> tuple[Tensor, ...]:
        """Return what ``run`` makes of this case.

        Raises:
            AssertionError: It wrote into an argument that it may not write into.
        """
        if self.call is not None:
            return as_tensors(self.call(run))
        args = [_copy(arg) for arg in self.args]
        result = as_tensors(run(*args, **{n: _copy(v) for n, v in self.kwargs.items()}))
        for index, (arg, original) in enumerate(zip(args, self.args, strict=True)):
            if index in self.writes or not isinstance(arg, torch.Tensor):
                continue
            is_same = torch.equal(arg.nan_to_num(), original.nan_to_num())
            assert is_same, f"argument {index} was written into; the op is functional"
        return result


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


def _copy(value: Any) -> Any:
    """Return a copy with the same strides; what is no tensor is returned as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return copy.copy_(value)
