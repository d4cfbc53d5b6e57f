"""Attention over latents: rows of one query against the memory's rate."""

from dataclasses import replace
from functools import partial

from cuda_parts.attention import make_batch
from cuda_parts.timing import BF16, Here, Report, copies_for, randn
from headstock.ops.latent import LatentSpec
from headstock_triton.latent.provider import LatentTuning, PagedLatentAttention

LATENT, ROTARY, KEY, VALUE = 512, 64, 128, 128
"""Of DeepSeek V2 and V3 and of Kimi K2."""
PAGE = 64
ROWS = {"64x8192": [8192] * 64, "8x16384": [16384] * 8, "256x1152": [1152] * 256}
HEADS = (16, 32, 128)
"""DeepSeek V2 Lite's, or V3's on eight cards; V3's on four; V3's on one."""


TUNED = "64x8192"
"""The case that other block shapes are timed with."""
TWICE = LatentTuning(most_heads=16, item=(32, 4, 2), programs_per_sm=3)
HALF = LatentTuning(most_heads=32, item=(32, 4, 2), programs_per_sm=2)
TUNINGS = {
    32: (
        TWICE,
        HALF,
        replace(HALF, item=(32, 4, 3)),
        replace(HALF, item=(32, 8, 3), programs_per_sm=1),
    ),
    128: (
        replace(HALF, item=(32, 4, 3)),
        LatentTuning(most_heads=64, item=(32, 8, 3), programs_per_sm=1),
    ),
}
"""Beside the ones that are served, by heads."""


def latent_calls(heads, lengths, tuning=None):
    """Return calls of single layers, the plan made beforehand, with layers enough to miss L2."""
    batch, num_pages = make_batch([1] * len(lengths), lengths, PAGE)
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
    q = randn(len(lengths), heads, KEY + ROTARY)
    up = randn(heads, KEY + VALUE, LATENT)
    provider.plan(batch)
    return [lambda kv=kv: provider.run(q, up, kv, batch) for kv in layers]


def part_latents(report: Report) -> None:
    for case, lengths in ROWS.items():
        for heads in HEADS:
            tokens = sum(lengths)
            report.time(
                "latents",
                partial(latent_calls, heads, lengths),
                num_bytes=tokens * (LATENT + ROTARY) * 2,
                flops=2 * tokens * heads * (2 * LATENT + ROTARY),
                case=case,
                heads=heads,
            )
