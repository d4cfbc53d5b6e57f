"""The gated delta rule: a token a row against the memory's rate, prompts beside another library.

The other library is flash-linear-attention (`fla`), where it is installed: its kernel for chunks
alone, on queries, keys and values that are convolved and decays that are made; ours convolves and
makes decays too, and stores its states on pages.
"""

import importlib.util
from functools import partial

import torch

from cuda_parts.attention import make_batch
from cuda_parts.timing import BF16, DEVICE, Here, Report, copies_for, randn, time_eager
from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec
from headstock_triton.linear_attention import TritonLinearAttention

SHAPE = (16, 32, 128, 128)
"""Qwen3-Next's: key heads, value heads, features of a head of each."""
ROWS = (16, 64, 256)
PROMPTS = {"1x8192": [8192], "8x1024": [1024] * 8, "4x4096": [4096] * 4}
KERNEL = 4
"""Tokens that the convolution sees."""


def delta_calls(shape, queries, lengths, copies=None):
    """Return calls of single layers, each with states of its own."""
    key_heads, value_heads, key_size, value_size = shape
    rows = len(lengths)
    batch, _ = make_batch(queries, lengths, 64)
    batch.page_table_RP = torch.arange(1, rows + 1, device=DEVICE, dtype=torch.int32)[:, None]
    batch.page_table_RP = batch.page_table_RP.expand(rows, 2).contiguous()
    spec = LinearAttentionSpec(
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_size=key_size,
        value_size=value_size,
        kernel_size=KERNEL,
        dtype=BF16,
        max_rows=512,
        max_tokens=16384,
    )
    provider = TritonLinearAttention(spec, Here())
    num_bytes = rows * spec.state_size * 4
    copies = copies or min(4, copies_for(num_bytes))
    layers = [randn(*provider.kv_shape(rows + 1), dtype=torch.float32) for _ in range(copies)]
    weights = DeltaWeights(
        conv_CW=randn(spec.conv_size, KERNEL),
        decay_V=randn(value_heads, dtype=torch.float32),
        bias_G=randn(value_heads, dtype=torch.float32),
    )
    tokens = sum(queries)
    qkv, b, a = (
        randn(tokens, spec.conv_size),
        randn(tokens, value_heads),
        randn(tokens, value_heads),
    )
    provider.plan(batch)
    return [lambda kv=kv: provider.run(qkv, b, a, weights, kv, batch) for kv in layers]


def part_delta(report: Report) -> None:
    """Rows of one token, then prompts."""
    _, value_heads, key_size, value_size = SHAPE
    for rows in ROWS:
        report.time(
            "delta decode",
            partial(delta_calls, SHAPE, [1] * rows, [1000] * rows),
            num_bytes=2 * rows * value_heads * key_size * value_size * 4,
            rows=rows,
        )
    for case, lengths in PROMPTS.items():
        make = partial(delta_calls, SHAPE, lengths, lengths, 2)
        report.time("delta prefill", make, timer=time_eager, case=case)
        if importlib.util.find_spec("fla"):
            report.time(
                "fla prefill", partial(fla_calls, SHAPE, lengths), timer=time_eager, case=case
            )


def fla_calls(shape, lengths):
    """Return calls of the other library's kernel for chunks."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    key_heads, value_heads, key_size, value_size = shape
    tokens = sum(lengths)
    starts = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    q, k = randn(1, tokens, key_heads, key_size), randn(1, tokens, key_heads, key_size)
    q, k = (x.repeat_interleave(value_heads // key_heads, 2) for x in (q, k))
    v = randn(1, tokens, value_heads, value_size)
    g = -torch.rand(1, tokens, value_heads, device=DEVICE)
    beta = torch.rand(1, tokens, value_heads, device=DEVICE).to(BF16)
    state = torch.zeros(len(lengths), value_heads, key_size, value_size, device=DEVICE)

    def call():
        return chunk_gated_delta_rule(
            q,
            k,
            v,
            g=g,
            beta=beta,
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            cu_seqlens=starts,
        )

    return [call, call]
