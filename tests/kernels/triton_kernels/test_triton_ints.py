"""Every way of multiplying integer weights, whatever the number of rows it is meant for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton_here import DTYPES, HAS_GPU, Here

from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.canonical import dequantize
from headstock.ops.cases.base import Draw
from headstock.ops.cases.linear import load_in_parts, make_weight
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import INT4_GROUP, INT8_GROUP, LinearSpec, linear
from headstock_triton.ints import (
    FUSED_ROWS,
    IntLinear,
    Packing,
    Tiling,
    WarpTile,
    choose_tiling,
    choose_warp_tile,
)
from headstock_triton.register import PROVIDER, register_ops
from headstock_triton.target import Target

WHERE = Here.torch_device
WAYS = {
    "few rows": IntLinear.by_few_rows,
    "tiles": lambda ours, x: ours.by_tiles(x, Tiling(16, 32, 1, 4, 2)),
    "split tiles": lambda ours, x: ours.by_tiles(x, Tiling(16, 64, 3, 4, 2)),
    "library": IntLinear.by_library,
}
FORMS = [(INT4_GROUP, 48), (INT4_GROUP, 128), (INT8_GROUP, 32), (INT8_GROUP, 384)]
H100 = Target(kind="cuda", arch=90, num_sms=132, has_pdl=True, has_tma=True)


def make(spec: LinearSpec) -> tuple[IntLinear, Tensor, Tensor | None]:
    """Return a provider, loaded part by part, its weight in float64 and its bias."""
    draw, ours = Draw(WHERE, seed=5), IntLinear(spec, Here())
    weight = make_weight(spec, draw)
    bias_O = draw.normal(spec.out_features, dtype=spec.dtype) if spec.has_bias else None
    load_in_parts(ours, weight, bias_O)
    return ours, dequantize(spec.layout, weight, torch.float64), bias_O


def spec_of(
    layout: CanonicalLayout, group_size: int, dtype: torch.dtype = torch.float32
) -> LinearSpec:
    return LinearSpec(
        in_features=384,
        out_features=37,
        dtype=dtype,
        layout=layout,
        group_size=group_size,
        has_bias=True,
    )


def assert_right(out: Tensor, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> None:
    want = x_MI.double() @ weight_OI.T + (0 if bias_O is None else bias_O.double())
    rtol, atol = (1e-5, 1e-5) if x_MI.dtype == torch.float32 else (2e-2, 3e-2)
    torch.testing.assert_close(out.double(), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "group_size"), FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_product(
    way: str, layout: CanonicalLayout, group_size: int, dtype: torch.dtype
) -> None:
    ours, weight_OI, bias_O = make(spec_of(layout, group_size, dtype))
    x_MI = Draw(WHERE, seed=6).normal(3, 384, dtype=dtype)
    assert_right(WAYS[way](ours, x_MI), x_MI, weight_OI, bias_O)


on_nvidia = pytest.mark.skipif(
    not HAS_GPU or torch.version.hip is not None, reason="Gluon is not interpreted"
)
WARP_TILES = [
    WarpTile(8, 16, 8),
    WarpTile(16, 32, 4),
    WarpTile(32, 32, 4, 2),
    WarpTile(32, 64, 2, 4),
]
WARP_FORMS = [(INT4_GROUP, 128), (INT4_GROUP, 96), (INT8_GROUP, 32), (INT8_GROUP, 384)]


@on_nvidia
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("layout", "group_size"), WARP_FORMS)
@pytest.mark.parametrize("tile", WARP_TILES, ids=str)
def test_warps_give_the_product(
    tile: WarpTile, layout: CanonicalLayout, group_size: int, dtype: torch.dtype
) -> None:
    ours, weight_OI, bias_O = make(spec_of(layout, group_size, dtype))
    for num_rows in (1, 9, 40):
        x_MI = Draw(WHERE, seed=6).normal(num_rows, 384, dtype=dtype)
        assert_right(ours.by_warps(x_MI, tile), x_MI, weight_OI, bias_O)
        apart_MI = Draw(WHERE, seed=6).normal(num_rows, 500, dtype=dtype)[:, 99:483]
        assert_right(ours.by_warps(apart_MI, tile), apart_MI, weight_OI, bias_O)


@on_nvidia
@pytest.mark.parametrize("tile", WARP_TILES, ids=str)
def test_a_row_by_warps_does_not_depend_on_its_neighbours(tile: WarpTile) -> None:
    ours, _, _ = make(spec_of(INT4_GROUP, 128, torch.float16))
    x_MI = Draw(WHERE, seed=6).normal(11, 384, dtype=torch.float16)
    alone = ours.by_warps(x_MI, tile)[1]
    x_MI[0], x_MI[2] = torch.nan, 6e4
    assert torch.equal(ours.by_warps(x_MI, tile)[1], alone)


@on_nvidia
def test_symmetric_weights_need_no_minima() -> None:
    ours, weight = make_symmetric()
    assert ours._is_symmetric
    ours._minimum_OG.fill_(torch.nan)  # so that nobody reads them
    x_MI = Draw(WHERE, seed=6).normal(5, 384, dtype=torch.float16)
    right_OI = dequantize(INT4_GROUP, weight, torch.float64)
    assert_right(ours.by_warps(x_MI), x_MI, right_OI, None)


def make_symmetric() -> tuple[IntLinear, dict[str, Tensor]]:
    spec = replace(spec_of(INT4_GROUP, 128, torch.float16), has_bias=False)
    ours, weight = IntLinear(spec, Here()), make_weight(spec, Draw(WHERE, seed=5))
    weight["minimum"] = weight["scale"] * -8.0
    load_in_parts(ours, weight, None)
    return ours, weight


def test_weights_with_minima_do_not_follow_symmetric_ones_in_captured_steps() -> None:
    ours, weight = make_symmetric()
    ours._has_multiplied = True
    load_in_parts(ours, weight, None)
    weight["minimum"] = weight["minimum"] + 1.0
    with pytest.raises(ValueError, match="symmetric ones only"):
        load_in_parts(ours, weight, None)


def test_narrow_matrices_have_more_warps_and_many_rows_go_abreast() -> None:
    assert choose_warp_tile(1, 24576, 4, H100) == WarpTile(8, 32, 4)
    assert choose_warp_tile(1, 4096, 4, H100).warps == 8
    assert choose_warp_tile(20, 24576, 4, H100).abreast == 4
    assert choose_warp_tile(16, 4096, 8, H100) == WarpTile(16, 32, 4, 2)


@pytest.mark.parametrize("num_rows", [1, 2, 5, 20, 50])
def test_the_number_of_rows_chooses_a_way_that_is_right(num_rows: int) -> None:
    ours, weight_OI, bias_O = make(spec_of(INT4_GROUP, 128, torch.float16))
    x_MI = Draw(WHERE, seed=6).normal(num_rows, 384, dtype=torch.float16)
    assert_right(ours(x_MI), x_MI, weight_OI, bias_O)


def test_more_rows_than_tiles_are_meant_for_go_to_the_library() -> None:
    ours, weight_OI, bias_O = make(spec_of(INT8_GROUP, 32))
    x_MI = Draw(WHERE, seed=6).normal(FUSED_ROWS + 1, 384)
    assert torch.equal(ours(x_MI), ours.by_library(x_MI))
    assert_right(ours(x_MI), x_MI, weight_OI, bias_O)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_does_not_depend_on_its_neighbours(way: str) -> None:
    ours, _, _ = make(spec_of(INT4_GROUP, 48))
    x_MI = Draw(WHERE, seed=6).normal(3, 384)
    alone = WAYS[way](ours, x_MI)[1]
    x_MI[0], x_MI[2] = torch.nan, 1e30
    assert torch.equal(WAYS[way](ours, x_MI)[1], alone)


@pytest.mark.parametrize("way", WAYS)
def test_rows_may_lie_apart(way: str) -> None:
    ours, weight_OI, bias_O = make(spec_of(INT8_GROUP, 32))
    x_MI = Draw(WHERE, seed=6).normal(3, 500)[:, 100:484]
    assert_right(WAYS[way](ours, x_MI), x_MI, weight_OI, bias_O)


@pytest.mark.parametrize(("layout", "group_size"), FORMS)
def test_weights_are_kept_exactly(layout: CanonicalLayout, group_size: int) -> None:
    """Multiply by the identity: what comes out is what the canonical weight stands for."""
    ours, weight_OI, bias_O = make(replace(spec_of(layout, group_size), has_bias=False))
    eye = torch.eye(384, device=WHERE)
    torch.testing.assert_close(ours.by_library(eye).T.double(), weight_OI, rtol=2e-7, atol=2e-8)
    assert bias_O is None


def test_new_weights_come_to_the_old_addresses() -> None:
    spec = replace(spec_of(INT4_GROUP, 32), has_bias=False)
    ours, _, _ = make(spec)
    before = [t.data_ptr() for t in (ours._words_OW, ours._scale_OG, ours._minimum_OG)]
    weight = make_weight(spec, Draw(WHERE, seed=9))
    load_in_parts(ours, weight, None)
    assert before == [t.data_ptr() for t in (ours._words_OW, ours._scale_OG, ours._minimum_OG)]
    x_MI = Draw(WHERE, seed=6).normal(2, 384)
    assert_right(ours(x_MI), x_MI, dequantize(INT4_GROUP, weight, torch.float64), None)


@pytest.mark.parametrize(
    ("in_features", "group_size", "bits", "slab", "num_words", "run"),
    [
        (4096, 128, 4, 32, 512, 4),
        (4096, 32, 8, 32, 1024, 1),
        (576, 64, 4, 32, 96, 2),
        (96, 48, 4, 16, 16, 1),
        (512, 512, 4, 32, 64, 8),
    ],
)
def test_words_of_a_row(
    in_features: int, group_size: int, bits: int, slab: int, num_words: int, run: int
) -> None:
    packing = Packing(in_features, group_size, bits)
    assert (packing.slab, packing.num_words, packing.run) == (slab, num_words, run)


def test_few_output_features_are_split_along_the_inputs() -> None:
    num_chunks = 16
    assert choose_tiling(16, 24576, num_chunks, H100).splits == 1
    assert choose_tiling(64, 4096, num_chunks, H100, bits=4).splits == 2
    assert choose_tiling(16, 4096, num_chunks, H100).splits == 4
    assert choose_tiling(16, 1024, 4, H100).splits == 2
    assert choose_tiling(16, 1024, 2, H100).splits == 1


def test_groups_that_a_step_of_a_tensor_core_would_cut_are_left_to_others() -> None:
    registry = OpRegistry()
    register_ops(registry, Here())
    resolver = Resolver(registry, Here())
    spec = spec_of(INT4_GROUP, 24).as_spec()
    assert resolver.resolve(linear, spec) is linear.reference
    chosen = resolver.resolve(linear, spec_of(INT4_GROUP, 48).as_spec())
    assert any(chosen is i.run for i in registry.offered(linear) if i.provider == PROVIDER)
