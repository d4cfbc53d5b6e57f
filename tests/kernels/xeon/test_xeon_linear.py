from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.ops.canonical import dequantize
from headstock.ops.linear import INT8_GROUP, LinearSpec
from headstock_xeon.kernels.linear import BFLOAT16, FLOAT32, NativeLinear
from tests.kernels.xeon.conftest import SETS, rounding_bound

pytestmark = pytest.mark.parametrize("instruction_set", SETS, indirect=True)
SEED = 0
"""Of activations. With it 65 rows have an int8 product in groups of 128 whose scales are rounded as
far as float16 rounds: by more than 2**-12."""
KINDS = ("float32", "bfloat16", "int8", "int8 of 16", "int8 of 128", "int4", "int4 of 64")
BOUNDS = {"int8": 3e-4, "int4": 1.5e-2}
"""Error against float64, relative to the products' deviation. Int4 weights meet activations of
8 bits."""


@pytest.fixture
def make_linear(make_part):
    """Return a function that packs a drawn weight: (the packed one, what it stands for)."""
    return lambda *args, **options: pack(make_part, *args, **options)


def pack(make_part, device, kind: str, size_out: int, size_in: int, **options) -> tuple:
    layout, group_size, part = make_part(kind, size_out, size_in)
    spec = LinearSpec(
        in_features=size_in,
        out_features=size_out,
        dtype=torch.float32,
        layout=layout,
        group_size=group_size,
        **options,
    )
    linear = NativeLinear(spec, device)
    linear.load(part, 0)
    return linear, dequantize(layout, part, torch.float64)


def draw(*shape: int) -> Tensor:
    """Return normal numbers, the same ones in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED))


def native_kind(linear: NativeLinear) -> int:
    """Return what a dense weight is kept as, by the name of the kernel that multiplies it."""
    return {"bf16": BFLOAT16, "f32": FLOAT32}[linear.kernel.partition("-")[0]]


def error_of(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13, 65])
def test_products_are_within_the_bound_of_their_kind(
    make_linear, device, kind: str, rows: int
) -> None:
    linear, weight_OI = make_linear(device, kind, 75, 384)
    x_MI = draw(rows, 384)
    wanted = x_MI.double() @ weight_OI.T
    error_MO = (linear(x_MI).double() - wanted).abs()
    name = kind.partition(" of ")[0]
    if name == "int4":
        assert error_MO.max() < 5 * BOUNDS[name] * wanted.std()
    else:
        assert (error_MO <= rounding_bound(name, x_MI, weight_OI)).all()


@pytest.mark.parametrize("size_in", [1, 2, 3, 31, 33, 100, 577])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_dense_weights_may_have_any_size(make_linear, device, kind: str, size_in: int) -> None:
    linear, weight_OI = make_linear(device, kind, 17, size_in)
    x_MI = draw(9, size_in)
    error_MO = (linear(x_MI).double() - x_MI.double() @ weight_OI.T).abs()
    assert (error_MO <= rounding_bound(kind, x_MI, weight_OI)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_in_any_batch(make_linear, device, kind: str) -> None:
    linear, _ = make_linear(device, kind, 200, 256)
    x_MI = draw(37, 256)
    whole = linear(x_MI)
    alone = torch.cat([linear(x_MI[i : i + 1]) for i in range(37)])
    assert torch.equal(whole, alone)


@pytest.mark.parametrize("size_in", [256, 70 * 32])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 64])
def test_groups_with_outliers_are_rounded_finer(
    make_linear, device, with_outliers, rows: int, size_in: int
) -> None:
    linear, weight_OI = make_linear(device, "int4", 75, size_in)
    x_MI = with_outliers(rows, size_in)
    error_MO = linear(x_MI).double() - x_MI.double() @ weight_OI.T
    # To 8 bits alone an outlier's group is rounded to steps of this size: the error of its 31 other
    # inputs would be sqrt(31 / 12) = 1.6 steps, times the weights' deviation.
    step_M = x_MI.abs().amax(1) / 127
    assert (error_MO.square().mean(1).sqrt() < 0.75 * step_M * weight_OI.std()).all()


@pytest.mark.parametrize("size_in", [256, 70 * 32])
def test_a_row_s_bits_do_not_depend_on_its_neighbours_outliers(
    make_linear, device, with_outliers, size_in: int
) -> None:
    linear, _ = make_linear(device, "int4", 75, size_in)
    x_MI = with_outliers(37, size_in)
    x_MI[5] = 0.0
    alone = torch.cat([linear(x_MI[i : i + 1]) for i in range(37)])
    assert torch.equal(linear(x_MI), alone)
    x_MI[9, 3] = torch.inf
    others = [i for i in range(37) if i != 9]
    assert torch.equal(linear(x_MI)[others], alone[others])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_results_have_the_same_bits_on_any_number_of_threads(
    make_linear, open_device, kind: str, rows: int
) -> None:
    x_MI = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1))
    results = [make_linear(open_device(n), kind, 300, 256)[0](x_MI) for n in (1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("rows", [1, 5, 130])
def test_outliers_have_the_same_bits_on_any_number_of_threads(
    make_linear, open_device, with_outliers, rows: int
) -> None:
    x_MI = with_outliers(rows, 70 * 32)
    results = [make_linear(open_device(n), "int4", 300, 70 * 32)[0](x_MI) for n in (1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", ["int8", "int8 of 16", "int4", "int4 of 64"])
def test_half_precision_scales_are_kept_exactly(make_part, device, kind: str) -> None:
    layout, group_size, part = make_part(kind, 40, 128)
    part = {n: t if n == "weight" else t.half().float() for n, t in part.items()}
    spec = LinearSpec(
        in_features=128,
        out_features=40,
        dtype=torch.float32,
        layout=layout,
        group_size=group_size,
        needs_rows=True,
    )
    linear = NativeLinear(spec, device)
    linear.load(part, 0)
    rows = linear.rows(torch.arange(40), 0)
    assert torch.equal(rows, dequantize(layout, part, torch.float32))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e9, 1e30])
def test_weights_may_be_tiny_or_huge(make_part, device, kind: str, size: float) -> None:
    layout, group_size, part = make_part(kind, 16, 64)
    part = {n: t if n == "weight" else t * size for n, t in part.items()}
    spec = LinearSpec(
        in_features=64, out_features=16, dtype=torch.float32, layout=layout, group_size=group_size
    )
    linear = NativeLinear(spec, device)
    linear.load(part, 0)
    x_MI = draw(3, 64)
    wanted = x_MI.double() @ dequantize(layout, part, torch.float64).T
    assert error_of(linear(x_MI), wanted) < 5 * BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_loaded_in_any_order_and_biases_too(
    make_linear, make_part, device, kind: str
) -> None:
    layout, group_size, part = make_part(kind, 53, 128)
    spec = LinearSpec(
        in_features=128,
        out_features=53,
        dtype=torch.float32,
        layout=layout,
        group_size=group_size,
        has_bias=True,
    )
    linear, bias_O = NativeLinear(spec, device), draw(53)
    for begin, end in ((29, 53), (0, 7), (7, 29)):
        linear.load({n: t[begin:end] for n, t in part.items()}, begin)
        linear.load_bias(bias_O[begin:end], begin)
    whole, _ = make_linear(device, kind, 53, 128)
    x_MI = draw(4, 128)
    assert torch.equal(linear(x_MI), whole(x_MI) + bias_O)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_other_ranks_look_up_zeros(make_linear, device, kind: str) -> None:
    linear, weight_OI = make_linear(device, kind, 20, 128, needs_rows=True)
    found = linear.rows(torch.tensor([99, 100, 119, 120, -5]), 100)
    assert not found[[0, 3, 4]].any()
    assert torch.allclose(found[1:3].double(), weight_OI[[0, 19]], rtol=1e-3, atol=5e-4)


def test_dense_rows_that_bfloat16_cannot_hold_widen_the_weight(device) -> None:
    spec = LinearSpec(in_features=64, out_features=32, dtype=torch.float32)
    linear, weight_OI = NativeLinear(spec, device), draw(32, 64)
    low = weight_OI[:16].to(torch.bfloat16)
    linear.load({"weight": low}, 0)
    assert native_kind(linear) == BFLOAT16
    linear.load({"weight": weight_OI[16:]}, 16)
    x_MI = draw(2, 64)
    wanted = x_MI @ torch.cat((low.float(), weight_OI[16:])).T
    assert native_kind(linear) == FLOAT32
    assert torch.allclose(linear(x_MI), wanted, atol=1e-5)


def test_activations_may_be_columns_of_a_wider_tensor(make_linear, device) -> None:
    linear, _weight_OI = make_linear(device, "int8", 24, 64)
    wide = draw(5, 200)
    assert torch.equal(linear(wide[:, 3:67]), linear(wide[:, 3:67].contiguous()))


def test_activations_of_zeros_give_the_bias(make_linear, device) -> None:
    linear, _ = make_linear(device, "int4", 24, 64, has_bias=True)
    linear.load_bias(torch.arange(24.0), 0)
    assert torch.equal(linear(torch.zeros(2, 64)), torch.arange(24.0).expand(2, 24))


def test_features_that_do_not_divide_into_groups_are_refused(device) -> None:
    spec = LinearSpec(
        in_features=48, out_features=8, dtype=torch.float32, layout=INT8_GROUP, group_size=32
    )
    with pytest.raises(UnsupportedError, match="48 input features"):
        NativeLinear(spec, device)
