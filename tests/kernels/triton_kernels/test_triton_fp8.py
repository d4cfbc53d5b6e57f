"""Products in 8-bit floats, in OCP's format and in AMD's: interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from fp8_here import padded, quantised
from torch import Tensor
from triton.runtime import interpreter
from triton_here import HAS_GPU, Here

from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.canonical import dequantize, quantize_fp8
from headstock.ops.cases.base import Bench
from headstock.ops.cases.linear import load_in_parts
from headstock.ops.cases.moe import expert_cases
from headstock.ops.linear import FP8_GROUP, LinearSpec, linear
from headstock.ops.moe import experts
from headstock_triton import fp8_blocks, register
from headstock_triton.fp8 import quantize_rows
from headstock_triton.fp8_formats import FNUZ, FORMATS, OCP, Fp8Format
from headstock_triton.moe import FusedExperts, build_experts
from headstock_triton.target import Target

if HAS_GPU:
    pytest.skip("a GPU has one of the formats at most: the kit tests that one", True)

KINDS = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.capability)
CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


@KINDS
def test_a_converted_weight_holds_the_same_numbers(kind: Fp8Format) -> None:
    """Every code there is, negative zero and not-a-numbers among them."""
    scale_OG = torch.tensor([[0.37]])
    got = kind.converted({"weight": CODES[None], "scale": scale_OG})
    assert got["weight"].dtype == kind.dtype
    numbers = got["weight"].float() * got["scale"]
    torch.testing.assert_close(numbers, CODES[None].float() * 0.37, rtol=0, atol=0, equal_nan=True)


def test_codes_as_they_are_would_mean_half() -> None:
    """What the conversion is for."""
    plain = CODES[:127]
    assert torch.equal(plain.view(torch.float8_e4m3fnuz).float() * 2, plain.float())
    assert CODES.view(torch.float8_e4m3fnuz)[128].isnan()
    assert OCP.largest == torch.finfo(torch.float8_e4m3fn).max
    assert FNUZ.largest == torch.finfo(torch.float8_e4m3fnuz).max


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter of Triton 3.7 know the format, which it computes and cannot name."""
    patch = interpreter._patch_lang_core

    def with_format(lang, scope) -> None:
        patch(lang, scope)
        known = lang.dtype.to_ir

        def to_ir(self, builder):
            return builder.get_fp8e4b8_ty() if self.name == "fp8e4b8" else known(self, builder)

        scope.set_attr(lang.dtype, "to_ir", to_ir)

    monkeypatch.setattr(interpreter, "_patch_lang_core", with_format)


def make(num_rows: int, num_out: int, *, has_bias: bool) -> tuple[LinearSpec, Tensor, Tensor]:
    """Return a spec, rows with a group of zeros, and a bias."""
    draw = torch.Generator().manual_seed(num_rows)
    spec = LinearSpec(
        in_features=256,
        out_features=num_out,
        dtype=torch.float32,
        layout=FP8_GROUP,
        group_size=128,
        has_bias=has_bias,
    )
    x_MI = torch.randn(num_rows, 256, generator=draw)
    x_MI[0, 128:] = 0
    return spec, x_MI, torch.randn(num_out, generator=draw)


@KINDS
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("num_rows", "num_out"), [(1, 37), (19, 96), (130, 200)])
def test_a_product_is_that_of_its_quantised_rows(
    kind: Fp8Format, num_rows: int, num_out: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, x_MI, bias_O = make(num_rows, num_out, has_bias=has_bias)
    values_MI, scale_MG = quantised(x_MI, kind)
    monkeypatch.setattr(fp8_blocks, "quantize_rows", padded)
    weight = quantize_fp8(torch.randn(num_out, 256), 128)
    weight["weight"].view(torch.uint8)[0, :2] = torch.tensor([0x80, 0x01], dtype=torch.uint8)
    device = Here()
    device.capabilities = frozenset({kind.capability})
    provider = fp8_blocks.build_block_fp8(spec, device)
    load_in_parts(provider, weight, bias_O if has_bias else None)
    wide_OI = dequantize(FP8_GROUP, weight, torch.float64)
    wide_MI = values_MI.double() * scale_MG.repeat_interleave(128, dim=1)
    wanted_MO = wide_MI @ wide_OI.t() + (bias_O if has_bias else 0)
    torch.testing.assert_close(provider(x_MI).double(), wanted_MO, rtol=1e-5, atol=1e-4)


@KINDS
def test_rows_are_quantised_to_the_format(kind: Fp8Format) -> None:
    """The interpreter rounds ties up, and loses the carry into the exponent: those are left out."""
    _, x_MI, _ = make(19, 1, has_bias=False)
    values_MI, scales_MG = quantize_rows(x_MI, Target(kind="cpu"), kind=kind)
    wanted_MI, scale_MG = quantised(x_MI, kind)
    torch.testing.assert_close(scales_MG[:19], scale_MG)
    got, wanted = values_MI[:19].float(), wanted_MI.float()
    has_no_carry = (wanted_MI.view(torch.uint8) & 7) != 0
    assert ((got - wanted).abs() <= wanted.abs() / 8)[has_no_carry].all()
    assert (got == wanted).float().mean() > 0.9


@KINDS
def test_experts_hold_their_weights_in_the_format(kind: Fp8Format) -> None:
    bench = Bench(resolver=Resolver(OpRegistry(), Here()), dtype=torch.float32)
    case = next(c for c in expert_cases(bench) if c.spec.layout == FP8_GROUP)
    device = Here()
    device.capabilities = frozenset({kind.capability})
    built: list[FusedExperts] = []

    def build(spec, _) -> FusedExperts:
        built.append(build_experts(spec, device))
        return built[0]

    (got,) = case.outcome(build)
    wanted = case.expected() if case.expected else case.outcome(experts.reference)[0]
    rtol, atol = case.tolerance or experts.tolerance.of("float32")
    torch.testing.assert_close(got.double(), wanted.double(), rtol=rtol, atol=atol)
    assert built[0]._down.parts["weight"].dtype == kind.dtype


@pytest.mark.parametrize(("capability", "dtype"), [(k.capability, k.dtype) for k in FORMATS])
def test_a_device_gets_the_format_that_it_multiplies(
    capability: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(kind="hip", num_sms=304)
    monkeypatch.setattr(register.Target, "of", lambda device: target)
    registry, device = OpRegistry(), Here()
    device.capabilities = frozenset({"rocm", "bf16", capability})
    register.register_ops(registry, device)
    spec, _, _ = make(1, 16, has_bias=False)
    provider = Resolver(registry, device).resolve(linear, spec.as_spec())(spec, device)
    assert provider._weight_OI.dtype == dtype
    spec, _, _ = make(1, 37, has_bias=False)
    device.capabilities = frozenset({"rocm", "bf16"})
    plain = Resolver(registry, device).resolve(linear, spec.as_spec())
    assert plain is linear.reference
