"""Attention over latents: rows of one query against the memory's rate."""

from dataclasses import replace
from functools import partial

from cuda_parts.attention import make_batch
from cuda_parts.timing import BF16, Here, Report, copies_for, randn, time_eager
from headstock.ops.latent import LatentSpec
from headstock_triton.latent.provider import (
    FEW_HEADS,
    MANY_HEADS,
    MANY_ON_HOPPER,
    SOME_HEADS,
    SOME_ON_HOPPER,
    PagedLatentAttention,
)

LATENT, ROTARY, KEY, VALUE = 512, 64, 128, 128
"""Of DeepSeek V2 and V3 and of Kimi K2."""
PAGE = 64
ROWS = {"64x8192": [8192] * 64, "8x16384": [16384] * 8, "256x1152": [1152] * 256}
HEADS = (16, 32, 128)
"""DeepSeek V2 Lite's, or V3's on eight cards; V3's on four; V3's on one."""


TUNED = "64x8192"
"""The case that other block shapes are timed with."""
ALONE = replace(FEW_HEADS, most_heads=32, item=(32, 8, 2), programs_per_sm=1)
TUNINGS = {
    32: (ALONE, FEW_HEADS, SOME_HEADS, replace(ALONE, item=(32, 8, 3))),
    128: (MANY_HEADS, replace(MANY_HEADS, item=(64, 8, 2)), SOME_ON_HOPPER),
}
"""Beside those that are served, by heads; the first are those of before."""
PROMPTS = {16: FEW_HEADS, 128: MANY_ON_HOPPER}
"""Rows of many queries, by heads: with two and with three tiles under way."""
PROMPT = 4096


def latent_calls(heads, lengths, tuning=None, queries=1):
    """Return calls of single layers, the plan made beforehand, with layers enough to miss L2."""
    batch, num_pages = make_batch([queries] * len(lengths), lengths, PAGE)
    spec = LatentSpec(
        num_heads=heads,
        latent_size=LATENT,
        rotary_size=ROTARY,
        key_size=KEY,
        value_size=VALUE,
        dtype=BF16,
        kv_dtype=BF16,
        page_size=PAGE,
        scale=(KEY + ROTARY) ** -0.5,
        max_length=32768,
        max_rows=512,
        max_tokens=8192,
    )
    provider = PagedLatentAttention(spec, Here(), tuning)
    shape = provider.kv_shape(num_pages)
    num_bytes = num_pages * PAGE * (LATENT + ROTARY) * 2
    layers = [randn(*shape) for _ in range(min(4, copies_for(num_bytes)))]
    q = randn(len(lengths) * queries, heads, KEY + ROTARY)
    up = randn(heads, KEY + VALUE, LATENT)
    provider.plan(batch)
    return [lambda kv=kv: provider.run(q, up, kv, batch) for kv in layers]


def part_latents(report: Report) -> None:
    """Rows of one query, one case with other block shapes too; then prompts."""
    for case, lengths in ROWS.items():
        for heads in HEADS:
            tokens = sum(lengths)
            tunings = TUNINGS.get(heads, ()) if case == TUNED else ()
            for tuning in (None, *tunings):
                facts = {} if tuning is None else {"tuning": shapes_of(tuning)}
                report.time(
                    "latents",
                    partial(latent_calls, heads, lengths, tuning),
                    num_bytes=tokens * (LATENT + ROTARY) * 2,
                    flops=2 * tokens * heads * (2 * LATENT + ROTARY),
                    case=case,
                    heads=heads,
                    **facts,
                )
    for heads, served in PROMPTS.items():
        for stages in (2, 3):
            tuning = replace(served, block=(*served.block[:2], stages))
            report.time(
                "latent prompts",
                partial(latent_calls, heads, [PROMPT], tuning, PROMPT),
                timer=time_eager,
                flops=PROMPT * PROMPT * heads * (2 * LATENT + ROTARY),
                heads=heads,
                tuning=shapes_of(tuning),
            )


def shapes_of(tuning):
    """Return the block shapes of ``tuning`` in few words."""
    item = f"{tuning.most_heads} heads {tuning.item} {tuning.programs_per_sm} an SM"
    return f"{item}, block {tuning.block_rows} {tuning.block}"
