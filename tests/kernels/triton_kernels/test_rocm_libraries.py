"""AITER and hipBLASLt as providers: who is chosen, and what they are given.

AITER is a stand-in with its published signatures; PyTorch multiplies here as hipBLASLt does there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fp8_here import padded
from triton_here import HAS_GPU, Here

from headstock.errors import ConfigError, UnsupportedError
from headstock.ops.activation import silu_and_mul
from headstock.ops.base import OpRegistry, Resolver, Spec
from headstock.ops.canonical import dequantize, quantize_fp8
from headstock.ops.linear import FP8_GROUP, LinearSpec, linear
from headstock.ops.norm import add_rms_norm, rms_norm
from headstock_rocm import fp8
from headstock_rocm.libraries import aiter_finding, load_aiter
from headstock_rocm.register import register_libraries
from headstock_triton import fp8_blocks
from headstock_triton.fp8_blocks import BlockFp8Linear

if HAS_GPU:
    pytest.skip("stand-ins compute on the host", True)

SPEC = LinearSpec(
    in_features=256,
    out_features=144,
    dtype=torch.float16,
    layout=FP8_GROUP,
    group_size=128,
    has_bias=True,
)


class Instinct(Here):
    """An MI350, as far as capabilities go."""

    capabilities = frozenset({"rocm", "bf16", "gfx950", "mfma", "fp8"})


class Older(Instinct):
    capabilities = frozenset({"rocm", "bf16", "gfx942", "mfma", "fp8_fnuz"})


@pytest.fixture(autouse=True)
def unknown() -> Iterator[None]:
    """Forget the module before and after, as other tests have others or none."""
    sys.modules.pop("aiter", None)
    load_aiter.cache_clear()
    yield
    sys.modules.pop("aiter", None)
    load_aiter.cache_clear()


@pytest.fixture
def aiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "published_aiter")


def resolver(device: Here | None = None, **forced: str) -> Resolver:
    registry, device = OpRegistry(), device or Instinct()
    register_libraries(registry)
    return Resolver(registry, device, forced)


def weight_of(scales: str) -> dict[str, torch.Tensor]:
    """Return a weight whose scales are shared by blocks, by rows or by nobody."""
    weight_OI = torch.randn(144, 256, generator=torch.Generator().manual_seed(0)) / 16
    weight = quantize_fp8(weight_OI, 128)
    scale_OG = weight["scale"]
    if scales == "by blocks":
        scale_OG = scale_OG[::128].repeat_interleave(128, dim=0)[:144]
    if scales == "by rows":
        scale_OG = scale_OG[:, :1].expand(-1, 2)
    return weight | {"scale": scale_OG.contiguous()}


def loaded(provider: BlockFp8Linear, weight: dict[str, torch.Tensor]) -> BlockFp8Linear:
    for begin, end in ((100, 144), (0, 100)):
        provider.load({name: part[begin:end] for name, part in weight.items()}, begin)
    provider.load_bias(torch.linspace(-1, 1, 144).half(), 0)
    return provider


@pytest.fixture(autouse=True)
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fp8, fp8_blocks):
        monkeypatch.setattr(module, "quantize_rows", padded)


def assert_right(provider: BlockFp8Linear, weight: dict[str, torch.Tensor]) -> None:
    x_MI = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).half()
    wanted = x_MI.double() @ dequantize(FP8_GROUP, weight, torch.float64).t()
    wanted += torch.linspace(-1, 1, 144).half().double()
    torch.testing.assert_close(provider(x_MI).double(), wanted, rtol=5e-2, atol=0.2)


def refuse(*args: object) -> None:
    raise AssertionError("our kernel was called")


class TestHipblaslt:
    @pytest.mark.parametrize("device", [Instinct(), Older()], ids=["OCP", "fnuz"])
    def test_weights_with_a_scale_a_row_are_its_own(
        self, device: Here, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        builder = resolver(device, linear="hipblaslt").resolve(linear, SPEC.as_spec())
        provider, weight = builder(SPEC, device), weight_of("by rows")
        monkeypatch.setattr(BlockFp8Linear, "__call__", refuse)
        assert_right(loaded(provider, weight), weight)

    @pytest.mark.parametrize("scales", ["by blocks", "by nobody"])
    def test_others_are_our_kernels(self, scales: str, monkeypatch: pytest.MonkeyPatch) -> None:
        provider = fp8.build_hipblaslt_fp8(SPEC, Instinct())
        monkeypatch.setattr(torch, "_scaled_mm", refuse)
        assert_right(loaded(provider, weight_of(scales)), weight_of(scales))


@pytest.mark.usefixtures("aiter")
class TestAiter:
    def test_weights_scaled_by_blocks_are_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        builder = resolver(linear="aiter").resolve(linear, SPEC.as_spec())
        provider, weight = builder(SPEC, Instinct()), weight_of("by blocks")
        monkeypatch.setattr(BlockFp8Linear, "__call__", refuse)
        assert_right(loaded(provider, weight), weight)

    def test_others_are_our_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        provider = loaded(fp8.build_aiter_fp8(SPEC, Instinct()), weight_of("by rows"))
        monkeypatch.setattr(load_aiter(), "gemm_a8w8_blockscale", refuse)
        assert_right(provider, weight_of("by rows"))

    @pytest.mark.parametrize("op", [rms_norm, add_rms_norm, silu_and_mul], ids=lambda op: op.name)
    def test_norms_and_activation_equal_the_reference(self, op) -> None:
        run = resolver(**{op.name: "aiter"}).resolve(op, Spec(dtype="float16"))
        draw = torch.Generator().manual_seed(2)
        wide = torch.randn(7, 130, generator=draw).half()[:, 1:129]  # strided
        arguments = {"rms_norm": (wide, wide[0]), "add_rms_norm": (wide, wide * 2, wide[0])}
        given = arguments.get(op.name, (wide,))
        options = {"eps": 1e-6} if op is not silu_and_mul else {}
        got, wanted = run(*given, **options), op.reference(*given, **options)
        torch.testing.assert_close(got, wanted, rtol=4e-3, atol=4e-3)

    def test_it_computes_only_where_it_is_forced(self) -> None:
        registry = OpRegistry()
        register_libraries(registry)
        registry.add(rms_norm, "triton", rms_norm.reference)
        asked = Resolver(registry, Instinct())
        asked.resolve(rms_norm, Spec(dtype="float16"))
        assert asked.resolutions[-1].provider == "triton"

    def test_it_is_imported_once_an_op_that_names_it_computes(self) -> None:
        resolver().resolve(linear, SPEC.as_spec())
        run = resolver(rms_norm="aiter").resolve(rms_norm, Spec(dtype="float16"))
        assert "aiter" not in sys.modules
        run(torch.zeros(2, 4).half(), torch.zeros(4).half(), eps=1e-6)
        assert "aiter" in sys.modules

    def test_a_desktop_card_is_passed_over_by_capability(self) -> None:
        desktop = Here()
        desktop.capabilities = frozenset({"rocm", "bf16", "gfx1201", "wmma", "fp8"})
        with pytest.raises(UnsupportedError, match="device lacks mfma"):
            resolver(desktop, linear="aiter").resolve(linear, SPEC.as_spec())


class TestWhatIsNotThere:
    def test_nothing_is_offered_that_is_not_installed(self) -> None:
        assert aiter_finding().text == "not installed, optional"
        with pytest.raises(ConfigError, match="aiter"):
            resolver(rms_norm="aiter").resolve(rms_norm, Spec(dtype="float16"))

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("import no_such_module_anywhere", "no_such_module_anywhere"),
            ("raise RuntimeError('no compiler for gfx950')", "no compiler for gfx950"),
            ("def parallel(): ...", "lacks rms_norm, rmsnorm2d_fwd_with_add"),
        ],
        ids=["broken", "raises", "another package of that name"],
    )
    def test_the_doctor_says_why_it_cannot_be_used(
        self, source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "aiter.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        finding = aiter_finding()
        assert not finding.is_ok
        assert reason in finding.text
        run = resolver(rms_norm="aiter").resolve(rms_norm, Spec(dtype="float16"))
        with pytest.raises(UnsupportedError, match=reason):
            run(torch.zeros(2, 4), torch.zeros(4), eps=1e-6)
        resolver().resolve(rms_norm, Spec(dtype="float32"))
