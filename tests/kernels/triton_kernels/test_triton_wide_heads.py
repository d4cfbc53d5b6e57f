"""Heads of 512 features, as Gemma 4's full layers have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_here import DTYPES, Here

from headstock.ops.attention import attention
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.attention import attention_case, plain_spec
from headstock_triton.attention.provider import PagedAttention
from headstock_triton.register import register_ops

STEPS = {
    "decode": ([(1, 70), (1, 1), (1, 17)], {"num_padding_rows": 1}),
    "mixed": ([(7, 7), (1, 40), (5, 33)], {}),
    "a shared prefix": ([(1, 50), (1, 40), (1, 33)], {"shared": ((0, 3, 32),)}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", STEPS)
def test_heads_of_512_agree_with_float64(label: str, dtype: torch.dtype) -> None:
    rows, options = STEPS[label]
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 512, "scale": 512**-0.5}
    spec = replace(plain_spec(dtype, 16), **sizes)
    case = attention_case(label, spec, rows, Here(), **options)
    registry = OpRegistry()
    register_ops(registry, Here())
    build = Resolver(registry, Here()).resolve(attention, case.spec)
    assert isinstance(build(spec, Here()), PagedAttention)
    (got,) = case.outcome(build)
    assert case.expected is not None
    wanted = case.expected()
    rtol, atol = attention.tolerance.of(case.spec.dtype)
    got = got[: case.num_real].double()
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
