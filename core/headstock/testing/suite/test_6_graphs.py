"""A captured step replays as the same step run eagerly, whatever lies in its buffers by then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from headstock.ops.activation import silu_and_mul
from headstock.ops.attention import AttentionProvider, StepBatch, attention, page_format_of
from headstock.ops.base import Resolver, Spec
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.base import Draw, dtype_name
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.rotary import rotary_table
from headstock.ops.linear import LinearSpec, linear
from headstock.ops.norm import rms_norm
from headstock.ops.rotary import rotate_and_write
from headstock.ops.steps import keep_rows
from headstock.plugins.device import Graph, GraphKey
from headstock.testing.compare import disagreement
from headstock.testing.target import Target

NUM_REPLAYS = 30
SIZE = 64
NUM_ROWS = 3
MAX_LENGTH = 1000
"""Tokens that rows may grow to."""
GROWTH = 31
"""Tokens by which rows are longer at each replay: past every power of two under their bound."""


@pytest.fixture(scope="module")
def resolver(target: Target) -> Resolver:
    return Resolver(target.registry, target.device)


@pytest.fixture(scope="module")
def bucket(target: Target) -> int:
    """Return the rows that a decode step of ``NUM_ROWS`` is padded to."""
    padded = target.device.graph_policy.bucket(NUM_ROWS, NUM_ROWS, True)
    if padded is None:
        pytest.skip("the device captures nothing")
    assert padded[0] == padded[1], f"a decode step has a token a row, not {padded}"
    return padded[1]


@pytest.fixture(scope="module")
def dtype(target: Target) -> torch.dtype:
    return target.device.default_dtype or torch.bfloat16


@torch.inference_mode()  # as the runner calls a device
def test_replays_equal_eager_runs_of_a_feed_forward_layer(
    target: Target, resolver: Resolver, bucket: int, dtype: torch.dtype
) -> None:
    draw = Draw(target.device.torch_device)
    layer = _feed_forward(target, resolver, draw, dtype)
    x_TD, out_TD = _buffers(target, bucket, dtype)
    keep = resolver.resolve(keep_rows, Spec(dtype=dtype_name(dtype)))
    graph = _capture(target, bucket, (), lambda: keep(layer(x_TD), out_TD))
    for _ in range(NUM_REPLAYS):
        x_TD.copy_(draw.normal(bucket, SIZE, dtype=dtype))
        graph.replay()
        target.device.synchronize()
        _compare(out_TD, layer(x_TD.clone()), dtype)


@torch.inference_mode()  # as the runner calls a device
def test_replays_equal_eager_runs_of_attention_over_growing_rows(
    target: Target, resolver: Resolver, bucket: int, dtype: torch.dtype
) -> None:
    decode = _Decode.build(target, resolver, bucket, dtype)
    for step in range(NUM_REPLAYS):
        lengths = [1 + step, 20 + GROWTH * step, 41 + 2 * step]
        decode.enter(lengths)
        wanted = decode.run(decode.pages.clone()).clone()
        decode.replay()
        target.device.synchronize()
        _compare(decode.out_TC[:NUM_ROWS], wanted[:NUM_ROWS], dtype)


@dataclass(slots=True)
class _Decode:
    """A decode step of one attention layer, and the graphs captured of it."""

    target: Target
    provider: AttentionProvider
    prepare: Callable[..., Tensor]
    keep: Callable[..., None]
    arguments: dict[str, object]
    batch: StepBatch
    slots: list[Tensor]
    pages: Tensor
    qkv_TC: Tensor
    out_TC: Tensor
    draw: Draw
    graphs: dict[tuple[int, ...], Graph]

    @classmethod
    def build(cls, target: Target, resolver: Resolver, bucket: int, dtype: torch.dtype) -> _Decode:
        where = target.device.torch_device
        page_size = target.benches(dtype)[0].page_sizes[0]
        spec = plain_spec(dtype, page_size)
        provider = resolver.resolve(attention, spec.as_spec())(spec, target.device)
        rows = [(1, MAX_LENGTH)] * NUM_ROWS
        step = make_step(rows, page_size, where, num_padding_rows=bucket - NUM_ROWS)
        step.batch.host_rows = []
        heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
        sizes = {**heads, "rotary_size": 64, "page_size": page_size}
        asked = Spec(dtype=dtype_name(dtype), sizes=sizes, page_format=page_format_of(provider).tag)
        shape = provider.kv_shape(step.num_pages)
        return cls(
            target=target,
            provider=provider,
            prepare=resolver.resolve(rotate_and_write, asked),
            keep=resolver.resolve(keep_rows, Spec(dtype=dtype_name(dtype))),
            arguments={
                "cos_sin_LC": rotary_table(spec.max_length, 64, where),
                "q_norm_D": None,
                "k_norm_D": None,
                **heads,
                "eps": 1e-6,
                "is_interleaved": False,
            },
            batch=step.batch,
            slots=step.slots,
            pages=target.device.empty(shape, page_format_of(provider).dtype).zero_(),
            qkv_TC=target.device.empty((bucket, 8 * 64), dtype).zero_(),
            out_TC=target.device.empty((bucket, 4 * 64), dtype).zero_(),
            draw=Draw(where),
            graphs={},
        )

    def enter(self, lengths: list[int]) -> None:
        """Give the real rows ``lengths`` with the token that they compute."""
        batch = self.batch
        if self.target.device.facts.needs_host_lengths:
            padding = [1] * (batch.num_rows - len(lengths))
            batch.host_rows = [(1, length) for length in [*lengths, *padding]]
        for row, length in enumerate(lengths):
            batch.kv_lengths_R[row] = length
            batch.positions_T[row] = length - 1
            batch.write_slots_T[row] = self.slots[row][length - 1]
        self.qkv_TC.copy_(self.draw.normal(*self.qkv_TC.shape, dtype=self.qkv_TC.dtype))
        self.provider.plan(batch)

    def run(self, pages: Tensor) -> Tensor:
        """Compute the step on ``pages``. [R, H D]"""
        q_THD = self.prepare(
            qkv_TC=self.qkv_TC,
            kv=pages,
            batch=self.batch,
            provider=self.provider,
            **self.arguments,
        )
        return self.provider.run(q_THD, pages, self.batch).flatten(1)

    def replay(self) -> None:
        """Replay the graph of what the plan decided; capture it when that is new."""
        key = self.provider.graph_key
        if key not in self.graphs:
            bucket = self.batch.num_rows
            self.graphs[key] = _capture(
                self.target, bucket, key, lambda: self.keep(self.run(self.pages), self.out_TC)
            )
        self.graphs[key].replay()


def _capture(
    target: Target, bucket: int, provider: tuple[int, ...], step: Callable[[], None]
) -> Graph:
    key = GraphKey("uniform", bucket, bucket, query=1, provider=provider)
    with torch.inference_mode():
        return target.device.capture(key, step)


def _feed_forward(
    target: Target, resolver: Resolver, draw: Draw, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return W2(silu(gate) * up) of the normalised input, with weights of its own."""
    name = dtype_name(dtype)
    norm = resolver.resolve(rms_norm, Spec(dtype=name, sizes={"size": SIZE}))
    activate = resolver.resolve(silu_and_mul, Spec(dtype=name, sizes={"size": 2 * SIZE}))
    weight_D = draw.normal(SIZE, dtype=dtype)
    products = []
    for size_in, size_out in ((SIZE, 4 * SIZE), (2 * SIZE, SIZE)):
        spec = LinearSpec(in_features=size_in, out_features=size_out, dtype=dtype)
        product = resolver.resolve(linear, spec.as_spec())(spec, target.device)
        weight_OI = draw.normal(size_out, size_in, dtype=dtype, scale=size_in**-0.5)
        product.load({"weight": weight_OI}, 0)
        products.append(product)
    up, down = products
    return lambda x_TD: down(activate(up(norm(x_TD, weight_D, eps=1e-6))))


def _buffers(target: Target, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    empty = target.device.empty
    return empty((rows, SIZE), dtype).zero_(), empty((rows, SIZE), dtype).zero_()


def _compare(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    rtol, atol = rms_norm.tolerance.of(dtype_name(dtype))
    wrong = disagreement((got,), (wanted,), rtol, atol)
    assert wrong is None, wrong
