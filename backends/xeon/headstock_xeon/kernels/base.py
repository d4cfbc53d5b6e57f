"""What kernels of function ops have in common, and what most of them require."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.base import Requires, Sizes
from headstock_xeon.device import XeonDevice
from headstock_xeon.stream import Word, strided

FLOAT32 = Requires(dtypes=frozenset({"float32"}), capabilities=frozenset({"avx2"}))
WHOLE_PAGES = replace(FLOAT32, page_dtypes=frozenset({"float32", "bfloat16", "float16"}))
INT32 = replace(FLOAT32, dtypes=frozenset({"int32"}))
"""Ops on the tables of a step have no activations; their dtype is that of their numbers."""
EIGHTS = Sizes(multiple_of=8)
"""Numbers of a vector."""


class Kernels:
    """Function ops bound to a device's stream: a method each."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream

    def _like(self, x: Tensor, kernel: str, *given: Word, then: Iterable[int] = ()) -> Tensor:
        """Run a kernel that fills a tensor like ``x``, which follows ``given`` with its shape."""
        shape = tuple(x.shape)  # PyTorch reads a Size more slowly.
        y = self._stream.empty(shape)
        self._stream.emit(kernel, *given, y, *shape, *then)
        return y


def rows_of_step(batch: StepBatch) -> tuple[Word, ...]:
    """Return what instructions say of a step's rows: ``StepRows`` of ``step_rows.h``."""
    rows = (batch.row_of_token_T, batch.query_starts_R1, batch.kv_lengths_R, batch.counts)
    return (*rows, *strided(batch.page_table_RP))


class Native:
    """What providers have in common that lay out and read pages as their reference does.

    It comes before the reference among the classes that they are of.
    """

    spec: Any

    def __init__(self, spec: Any, device: XeonDevice) -> None:
        super().__init__(spec, device)  # pyright: ignore[reportCallIssue]
        self._stream = device.stream

    def plan(self, batch: StepBatch) -> None:
        """Check that the step is not larger than was said."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"
