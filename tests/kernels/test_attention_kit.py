"""The cases of the op ``attention`` name every way in which windows, sinks and caps go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headstock.ops.attention import AttentionSpec, StepBatch, attention
from headstock.ops.attention_reference import ReferenceAttention
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.attention import attention_cases
from headstock.ops.cases.base import Bench, Case
from headstock.ops.device import OpDevice
from headstock.plugins.host import HostDevice
from headstock.testing.compare import disagreement

RESOLVER = Resolver(OpRegistry(), HostDevice())
CASES = list(attention_cases(Bench(resolver=RESOLVER, dtype=torch.float32)))


class WindowOff(ReferenceAttention):
    """Sees one token more than the window has, or one fewer."""

    by = 1

    def __init__(self, spec: AttentionSpec, device: OpDevice) -> None:
        window = None if spec.window is None else max(1, spec.window + self.by)
        super().__init__(replace(spec, window=window), device)


class WindowShort(WindowOff):
    by = -1


class SinkTwice(ReferenceAttention):
    """Counts each head's sink in two parts of a row that are merged."""

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        doubled = None if sinks_H is None else sinks_H + torch.log(torch.tensor(2.0))
        return super().run(q_THD, kv, batch, sinks_H=doubled)


class NoSink(ReferenceAttention):
    """Leaves the sinks out."""

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        return super().run(q_THD, kv, batch)


class NoCap(ReferenceAttention):
    """Leaves the cap out."""

    def __init__(self, spec: AttentionSpec, device: OpDevice) -> None:
        super().__init__(replace(spec, soft_cap=None), device)


class CapUnscaled(ReferenceAttention):
    """Caps the products of queries and keys before they are scaled."""

    def __init__(self, spec: AttentionSpec, device: OpDevice) -> None:
        cap = None if spec.soft_cap is None else spec.soft_cap * spec.scale
        super().__init__(replace(spec, soft_cap=cap), device)


class ReadsAll(ReferenceAttention):
    """Reads what lies before the window too, and masks it."""

    def _tokens_read(self, piece: Any, num_queries: int) -> Tensor:
        whole = ReferenceAttention(replace(self.spec, window=None), HostDevice())
        return whole._tokens_read(piece, num_queries)


def wrong(builder: Callable[..., Any], case: Case) -> bool:
    got, wanted = case.outcome(builder), case.expected()
    rtol, atol = attention.tolerance.of("float32")
    return disagreement(got, (wanted,), rtol, atol, num_real=case.num_real) is not None


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_the_reference_is_right(case: Case) -> None:
    assert not wrong(ReferenceAttention, case)


@pytest.mark.parametrize(
    ("builder", "feature"),
    [
        (WindowOff, "sliding_window"),
        (WindowShort, "sliding_window"),
        (ReadsAll, "sliding_window"),
        (SinkTwice, "sinks"),
        (NoSink, "sinks"),
        (NoCap, "soft_cap"),
        (CapUnscaled, "soft_cap"),
    ],
)
def test_a_wrong_provider_is_found(builder: Callable[..., Any], feature: str) -> None:
    asking = [case for case in CASES if feature in case.spec.features]
    assert any(wrong(builder, case) for case in asking)
