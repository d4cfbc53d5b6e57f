"""The gated delta rule: a token a row against the memory's rate, prompts beside another library.

Prompts are timed as they are served, by parts, with other block shapes, and by the kernel that goes
through a row's chunks one after another, which is what the results are compared to.

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
from headstock_triton.convolution import convolve
from headstock_triton.linear_attention import PromptTuning, TritonLinearAttention

SHAPE = (16, 32, 128, 128)
"""Qwen3-Next's: key heads, value heads, features of a head of each."""
ROWS = (16, 64, 256)
PROMPTS = {"1x8192": [8192], "8x1024": [1024] * 8, "4x4096": [4096] * 4}
KERNEL = 4
"""Tokens that the convolution sees."""
TUNINGS = (
    PromptTuning(columns=128, warps=8),
    PromptTuning(columns=32),
    PromptTuning(prepare_warps=8),
)
"""Beside the one that is served."""


def make_layer(shape, queries, lengths, tuning=None):
    """Return a provider, and the step and inputs of a layer but for its pages."""
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
    provider = TritonLinearAttention(spec, Here(), tuning)
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
    return provider, batch, (qkv, b, a, weights)


def delta_calls(shape, queries, lengths, copies=None, tuning=None, is_whole=True):
    """Return calls of single layers, each with states of its own; not whole: chunk by chunk."""
    provider, batch, inputs = make_layer(shape, queries, lengths, tuning)
    if not is_whole:
        provider._tuning = None
    rows = len(lengths)
    copies = copies or min(4, copies_for(rows * provider.spec.state_size * 4))
    layers = [randn(*provider.kv_shape(rows + 1), dtype=torch.float32) for _ in range(copies)]
    return [lambda kv=kv: provider.run(*inputs, kv, batch) for kv in layers]


def part_calls(shape, lengths):
    """Return calls of what a layer of prompts consists of, by name."""
    provider, batch, (qkv, b, a, weights) = make_layer(shape, lengths, lengths)
    kv = randn(*provider.kv_shape(len(lengths) + 1), dtype=torch.float32)
    mixed = convolve(qkv, weights.conv_CW, None, kv, batch, provider._target)
    y = qkv.new_empty((qkv.shape[0], shape[1], shape[3]))
    return {
        "convolve": lambda: convolve(qkv, weights.conv_CW, None, kv, batch, provider._target),
        "prepare": lambda: provider._prepare_chunks(mixed, b, a, weights, kv, batch),
        "carry": lambda: provider._carry_states(mixed, kv, batch, y, provider._tuning),
    }


def distance(shape, lengths):
    """Return how far whole prompts are from chunks one by one: outputs and states, relative."""
    provider, batch, inputs = make_layer(shape, lengths, lengths)
    tuning, found = provider._tuning, []
    for chosen in (None, tuning):
        provider._tuning = chosen
        kv = torch.zeros(provider.kv_shape(len(lengths) + 1), device=DEVICE)
        y = provider.run(*inputs, kv, batch).double()
        found.append((y, provider.read(kv, batch.page_table_RP[:, 1])[1].double()))
    pairs = zip(*found, strict=True)
    return [float((ours - known).norm() / known.norm()) for known, ours in pairs]


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
        for tuning in TUNINGS:
            tuned = partial(make, tuning)
            report.time("delta prefill", tuned, timer=time_eager, case=case, tuning=str(tuning))
        by_chunk = partial(make, None, False)
        report.time("delta prefill by chunk", by_chunk, timer=time_eager, case=case)
        if report.shard is None:
            for part, call in part_calls(SHAPE, lengths).items():
                report.time("delta part", [call], timer=time_eager, case=case, part=part)
            y, state = distance(SHAPE, lengths)
            report.add("delta distance", case=case, y=round(y, 6), state=round(state, 6))
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
