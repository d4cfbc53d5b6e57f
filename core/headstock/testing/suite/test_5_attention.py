"""One attention provider serves step after step; the cases of the op build one a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headstock.ops.attention import AttentionProvider, AttentionSpec, attention, page_format_of
from headstock.ops.base import Implementation
from headstock.ops.cases.attention import (
    AttentionInputs,
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.base import dtype_name
from headstock.ops.cases.batches import Step, make_step
from headstock.runner.arena import page_axis
from headstock.testing.compare import disagreement
from headstock.testing.target import Target

Rows = Sequence[tuple[int, int]]
Built = tuple[Implementation, AttentionSpec, AttentionProvider]

STEPS: tuple[Rows, ...] = (
    [(1, 5), (1, 90), (1, 17)],
    [(33, 33)],
    [(1, 3)],
    [(7, 7), (1, 64), (12, 40), (1, 2)],
    [(1, 1 + 9 * n) for n in range(20)],
    [(1, 5), (1, 91), (1, 18)],
)


@pytest.fixture
def built(target: Target) -> list[Built]:
    """Build every offered provider in its first dtype and page size."""
    claimed = target.claims(attention)
    if not claimed:
        pytest.skip("not claimed")
    return list(_build(target, claimed))


def test_pages_lie_along_one_axis(built: list[Built]) -> None:
    for _, _, provider in built:
        page_axis(provider)  # raises what the start would


def test_one_provider_attends_over_steps_of_any_shape(target: Target, built: list[Built]) -> None:
    for implementation, spec, provider in built:
        for rows in (*STEPS, *reversed(STEPS)):
            step, inputs = _prepare(target, spec, rows)
            kv = filled_pages(provider, step, inputs, spec.max_tokens)
            got = attend(provider, kv, step, inputs)
            _compare(implementation, spec, rows, got, inputs)


def test_layers_share_a_plan(target: Target, built: list[Built]) -> None:
    for implementation, spec, provider in built:
        rows = STEPS[3]
        step, first = _prepare(target, spec, rows)
        other = replace(first, q_THD=first.q_THD.flip(1), v_rows=[-v for v in first.v_rows])
        pages = [filled_pages(provider, step, inputs, spec.max_tokens) for inputs in (first, other)]
        attend(provider, pages[0], step, first)
        got = attend(provider, pages[1], step, other, is_planned=True)
        _compare(implementation, spec, rows, got, other)


def test_what_was_written_is_read_back(target: Target, built: list[Built]) -> None:
    for implementation, spec, provider in built:
        rows = STEPS[3]
        step, inputs = _prepare(target, spec, rows)
        kv = filled_pages(provider, step, inputs, spec.max_tokens)
        attend(provider, kv, step, inputs)
        for slots, k, v in zip(step.slots, inputs.k_rows, inputs.v_rows, strict=True):
            keys, values = provider.read(kv, slots)
            rtol, atol = attention.tolerance.of(dtype_name(spec.kv_dtype))
            wrong = disagreement((keys, values), (k, v), rtol, atol)
            assert wrong is None, f"{implementation.provider}: {wrong}"


def test_writing_leaves_other_slots_alone(target: Target, built: list[Built]) -> None:
    for implementation, spec, provider in built:
        step, inputs = _prepare(target, spec, [(3, 3)])
        kv = torch.zeros(
            provider.kv_shape(step.num_pages + 1),
            dtype=page_format_of(provider).dtype,
            device=target.device.torch_device,
        )
        provider.plan(step.batch)
        provider.write(inputs.k_rows[0], inputs.v_rows[0], kv, step.batch)
        num_written = int((kv != 0).sum())
        wanted = 2 * 3 * spec.num_kv_heads * spec.head_dim
        assert num_written <= wanted, f"{implementation.provider} wrote {num_written} elements"


def _build(target: Target, claimed: list[Implementation]) -> Iterator[Built]:
    for implementation in claimed:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            bench = target.benches(dtype, implementation.provider)[0]
            spec = plain_spec(dtype, bench.page_sizes[0])
            capabilities = target.device.capabilities
            if implementation.requires.reason_against(spec.as_spec(), capabilities) is None:
                yield implementation, spec, implementation.run(spec, target.device)
                break


def _prepare(target: Target, spec: AttentionSpec, rows: Rows) -> tuple[Step, AttentionInputs]:
    where = target.device.torch_device
    step = make_step(rows, spec.page_size, where, num_padding_rows=len(rows) % 3)
    return step, make_inputs(spec, step, where)


def _compare(
    implementation: Implementation,
    spec: AttentionSpec,
    rows: Rows,
    got: Tensor,
    inputs: AttentionInputs,
) -> None:
    wanted = dense_attention(spec, rows, inputs)
    rtol, atol = attention.tolerance.of(dtype_name(spec.dtype))
    wrong = disagreement((got,), (wanted,), rtol, atol, num_real=len(wanted))
    assert wrong is None, f"attention by {implementation.provider}, rows {list(rows)}: {wrong}"
