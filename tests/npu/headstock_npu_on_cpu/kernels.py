"""The kernels: CPU implementations of torch-npu's schemas that say no where an NPU does.

What they refuse and compute is what the docstrings of torch-npu 2.13 say.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from headstock_npu_on_cpu import attention, products
from headstock_npu_on_cpu.refusals import FLOATS, need

SCHEMAS = Path(__file__).parent / "schemas.txt"


@cache
def install() -> None:
    """Register the schemas, and what computes them here."""
    library = torch.library.Library("npu", "DEF")
    for line in SCHEMAS.read_text().splitlines():
        if not line.startswith("#"):
            schema = line.removeprefix("npu::")
            library.define(schema)
            name = schema.partition("(")[0]
            library.impl(name, _computed[name], "CPU")
    _kept.append(library)


_kept: list[torch.library.Library] = []


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    need(input.dtype in FLOATS and gamma.dtype == input.dtype, "dtypes of a norm")
    x32 = input.float()
    rstd = torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)
    return (x32 * rstd * gamma.float()).to(input.dtype), rstd


def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    need(x1.shape == x2.shape and x1.dtype == x2.dtype, "summands differ")
    total = x1 + x2
    return (*npu_rms_norm(total, gamma, epsilon), total)


def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    need(input.dtype in FLOATS and input.shape[dim] % 2 == 0, "odd features of swiglu")
    gate, up = input.float().chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(input.dtype)


def npu_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    need(input.dim() == 4 and r1.shape == r2.shape, "rotation of something not BSND")
    batch, length, heads, size = input.shape
    need(r1.shape == (1, length, 1, size), f"angles of shape {tuple(r1.shape)}")
    need(r1.dtype == r2.dtype == input.dtype, "angles of another dtype")
    need(size % 2 == 0 and size < 896 and batch * heads < 1000, "sizes of a rotation")
    x, cos, sin = input.float(), r1.float(), r2.float()
    if rotary_mode == "half":
        first, second = x.chunk(2, -1)
        other = torch.cat((-second, first), -1)
    else:
        need(rotary_mode == "interleave", rotary_mode)
        other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return (x * cos + other * sin).to(input.dtype)


def npu_scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    need(cache_mode == "Norm", "pages in NZ format")
    tensors = (key, value, key_cache, value_cache, slot_mapping)
    need(all(x.is_contiguous() for x in tensors), "strided tensors")
    need(len({x.dtype for x in tensors[:4]}) == 1, "dtypes of pages")
    need(key.dim() == 3 and key_cache.dim() == 4 and slot_mapping.dim() == 1, "dimensions")
    need(len(slot_mapping) == len(key), "a slot for each token")
    for new, cached in ((key, key_cache), (value, value_cache)):
        need(new.shape[1:] == cached.shape[2:], "heads of pages")
        cached.view(-1, *cached.shape[2:]).index_copy_(0, slot_mapping.long(), new)


_computed = {name: run for part in (attention, products) for name, run in vars(part).items()}
_computed |= globals()
