"""Kernels for instruction sets that this machine may lack, run as scalar models of them.

Where the machine has the set, the kernel itself must give its model's bits: see ``vector512.h``.
"""

from __future__ import annotations

import pytest
import torch

from headstock.ops.canonical import dequantize
from headstock.ops.linear import LinearSpec
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.linear import NativeLinear
from headstock_xeon.native import FEATURES, MODEL

VNNI = FEATURES["avx512"] | FEATURES["avx512_vnni"]
SETS = {
    "f32-avx512-model": ("float32", FEATURES["avx512"]),
    "int8-vnni-model": ("int8", VNNI),
    "int8-g16-vnni-model": ("int8 of 16", VNNI),
    "int4-vnni-model": ("int4", VNNI),
    "int8-amx-model": ("int8", FEATURES["amx_int8"]),  # beside VNNI it is not chosen
    "bf16-avx512-model": ("bfloat16", VNNI | FEATURES["avx512_bf16"]),
    "bf16-amx-model": ("bfloat16", VNNI | FEATURES["avx512_bf16"] | FEATURES["amx_bf16"]),
}
SAME_BITS = [name for name in SETS if not name.startswith("bf16")]


@pytest.fixture(scope="module")
def make_pair(library, make_part):
    """Return a function that packs one weight for a modelled set and for AVX2."""
    opened: list[XeonDevice] = []

    def make(name: str, size_out: int, size_in: int):
        kind, features = SETS[name]
        layout, group_size, part = make_part(kind, size_out, size_in)
        spec = LinearSpec(
            in_features=size_in,
            out_features=size_out,
            dtype=torch.float32,
            layout=layout,
            group_size=group_size,
            needs_rows=True,
        )
        pair = []
        for bits in (FEATURES["avx2"] | features | MODEL, FEATURES["avx2"]):
            opened.append(XeonDevice("test", library, num_threads=1, features=bits))
            pair.append(NativeLinear(spec, opened[-1]))
            pair[-1].load(part, 0)
        assert pair[0].kernel == name
        return (*pair, dequantize(layout, part, torch.float64))

    yield make
    for device in opened:
        device.close()


@pytest.mark.parametrize("name", SAME_BITS)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 15, 17, 33])
def test_integer_and_float_kernels_have_the_bits_of_avx2(make_pair, name: str, rows: int) -> None:
    modelled, avx2, _ = make_pair(name, 53, 160)
    x_MI = torch.randn(rows, 160) * torch.logspace(-2, 2, 160)
    assert torch.equal(modelled(x_MI), avx2(x_MI))


@pytest.mark.parametrize("rows", [1, 7, 8, 17])
def test_int4_rests_have_the_bits_of_avx2_whatever_the_tile(
    make_pair, with_outliers, rows: int
) -> None:
    modelled, avx2, _ = make_pair("int4-vnni-model", 53, 70 * 32)
    x_MI = with_outliers(rows, 70 * 32)
    assert torch.equal(modelled(x_MI), avx2(x_MI))


@pytest.mark.parametrize("name", ["bf16-avx512-model", "bf16-amx-model"])
@pytest.mark.parametrize("size_in", [1, 31, 32, 100, 577])
@pytest.mark.parametrize("rows", [1, 8, 19])
def test_bfloat16_kernels_lose_next_to_nothing_of_float32_activations(
    make_pair, name: str, size_in: int, rows: int
) -> None:
    modelled, _, weight_OI = make_pair(name, 40, size_in)
    x_MI = torch.randn(rows, size_in)
    wanted = x_MI.double() @ weight_OI.T
    scale = (x_MI.double().abs() @ weight_OI.abs().T).clamp(min=1e-9)
    assert ((modelled(x_MI) - wanted).abs() / scale).max() < 2**-15


@pytest.mark.parametrize("name", SETS)
def test_a_row_has_the_same_bits_in_any_batch(make_pair, name: str) -> None:
    modelled, _, _ = make_pair(name, 40, 96)
    x_MI = torch.randn(35, 96)
    alone = torch.cat([modelled(x_MI[i : i + 1]) for i in range(35)])
    assert torch.equal(modelled(x_MI), alone)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("rows", [1, 8, 33])
def test_the_processor_gives_the_bits_of_the_model(
    make_pair, library, make_part, name: str, rows: int
) -> None:
    kind, features = SETS[name]
    features |= FEATURES["avx2"]
    if features & ~library.features:
        pytest.skip("this processor lacks the set")
    modelled, _, _ = make_pair(name, 53, 384)
    device = XeonDevice("test", library, num_threads=1, features=features)
    real = NativeLinear(modelled.spec, device)
    real.load(make_part(kind, 53, 384)[2], 0)
    assert f"{real.kernel}-model" == name
    x_MI = torch.randn(rows, 384) * torch.logspace(-2, 2, 384)
    assert torch.equal(real(x_MI), modelled(x_MI))
    device.close()


@pytest.mark.parametrize("name", SETS)
def test_rows_are_read_back(make_pair, name: str) -> None:
    modelled, avx2, _ = make_pair(name, 20, 64)
    ids = torch.arange(20)
    assert torch.equal(modelled.rows(ids, 0), avx2.rows(ids, 0))
