"""The ops that this backend computes. Shapes: D features; leading dimensions as they come."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import attention
from headstock.ops.base import OpRegistry, Requires, Sizes
from headstock.ops.linear import DENSE, INT8_GROUP, linear
from headstock.ops.norm import rms_norm
from headstock_acme.attention import PAGE_SIZES, PagedAttention
from headstock_acme.linear import build_linear

PROVIDER = "acme"
FLOATS = frozenset({"float32", "bfloat16", "float16"})


def native_rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """Return the normalised rows; parameters are named as the reference's. [..., D]"""
    x32 = x_TD.float()
    normal = torch.nn.functional.rms_norm(x32, (x32.shape[-1],), eps=eps)
    return normal.to(x_TD.dtype) * weight_D


def register(registry: OpRegistry) -> None:
    registry.add(rms_norm, PROVIDER, native_rms_norm, requires=Requires(dtypes=FLOATS))
    registry.add(
        linear,
        PROVIDER,
        build_linear,
        requires=Requires(dtypes=FLOATS, layouts=frozenset({DENSE, INT8_GROUP})),
    )
    registry.add(
        attention,
        PROVIDER,
        PagedAttention,
        requires=Requires(dtypes=FLOATS, sizes={"page_size": Sizes(only=frozenset(PAGE_SIZES))}),
    )
