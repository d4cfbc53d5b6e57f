"""Checkpoints of 8-bit and of 4-bit floating point values beside scales, against transformers.

The tests make the values themselves, and know what they stand for by the formats' descriptions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.loader import weight_bytes
from headstock.ops.canonical import dequantize
from headstock.ops.linear import DENSE, FP8_GROUP, INT8_GROUP, MXFP4
from headstock.testing.oracle.ranks import ThreadGroup, on_ranks
from tests.models.conftest import Save
from tests.models.harness import context, load
from tests.models.quantized_folders import (
    IDS,
    Quantize,
    assert_same_ids,
    change,
    configure,
    write_quantized,
)

SIZES = {"intermediate_size": 96, "head_dim": 32}
UP = "model.layers.0.mlp.up_proj"
E4M3 = torch.float8_e4m3fn
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
ONE = torch.tensor([0.05])


def scale_of(kind: str, weight_OI: Tensor, largest: float) -> Tensor:
    """Return scales of a matrix, its output features, groups of 16 or blocks of 32 x 48."""
    rows, columns = weight_OI.shape
    reach = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, 16),
        "block": (32, 48),
    }[kind]
    scales = torch.rand(-(-rows // reach[0]), -(-columns // reach[1])) + 0.5
    return scales * weight_OI.abs().max() / largest


def spread(scale: Tensor, shape: torch.Size) -> Tensor:
    """Return the scale of each element."""
    reach = (32, 48) if scale.shape == (-(-shape[0] // 32), -(-shape[1] // 48)) else None
    for dim in (0, 1):
        size = reach[dim] if reach else shape[dim] // scale.shape[dim]
        scale = scale.repeat_interleave(size, dim=dim).narrow(dim, 0, shape[dim])
    return scale


def fp8(
    weight_OI: Tensor,
    kind: str,
    name: str = "weight_scale",
    form: Callable[[Tensor], Tensor] = lambda scale: scale,
    **more: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    scale = scale_of(kind, weight_OI, 448)
    each = spread(scale, weight_OI.shape)
    values = (weight_OI / each).clamp(-448, 448).to(E4M3)
    return {"weight": values, name: form(scale), **more}, values.float() * each


def int8(
    weight_OI: Tensor, kind: str, *, zero: int | None = None, **more: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    scale = scale_of(kind, weight_OI, 127)
    each = spread(scale, weight_OI.shape)
    values = (weight_OI / each).round().clamp(-128, 127)
    parts = {"weight": values.to(torch.int8), "weight_scale": scale, **more}
    if zero is None:
        return parts, values * each
    zeros = torch.full_like(scale, zero)
    zeros[: len(zeros) // 2] = 0
    parts["weight_zero_point"] = zeros.to(torch.int8)
    return parts, (values - spread(zeros, weight_OI.shape)) * each


def four_bits(values_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest float4_e2m1 of each value: two in a byte; and as numbers."""
    code = (values_OI.abs().unsqueeze(-1) - E2M1).abs().argmin(dim=-1)
    nibbles = (code + 8 * (values_OI < 0)).to(torch.uint8)
    packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return packed, torch.where(values_OI < 0, -E2M1[code], E2M1[code])


def nvfp4(weight_OI: Tensor, *, by_modelopt: bool) -> tuple[dict[str, Tensor], Tensor]:
    whole = weight_OI.abs().max() / (448 * 6)
    scale_OG = (weight_OI.unflatten(1, (-1, 16)).abs().amax(dim=-1) / 6 / whole).to(E4M3)
    each = (scale_OG.float() * whole).repeat_interleave(16, dim=1)
    packed, values = four_bits(weight_OI / each)
    if by_modelopt:
        parts = {"weight": packed, "weight_scale": scale_OG, "weight_scale_2": whole}
        return parts | {"input_scale": ONE[0]}, values * each
    parts = {"weight_packed": packed, "weight_scale": scale_OG}
    inputs = {"input_global_scale": ONE}
    return parts | {"weight_global_scale": 1 / whole.reshape(1)} | inputs, values * each


def mxfp4(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    exponent_OG = weight_OI.unflatten(1, (-1, 32)).abs().amax(dim=-1).log2().floor() - 2
    each = exponent_OG.exp2().repeat_interleave(32, dim=1)
    packed, values = four_bits(weight_OI / each)
    scale = (exponent_OG + 127).to(torch.uint8)
    return {"weight_packed": packed, "weight_scale": scale}, values * each


def mxfp8(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    exponent_OG = weight_OI.unflatten(1, (-1, 32)).abs().amax(dim=-1).log2().floor() - 8
    each = exponent_OG.exp2().repeat_interleave(32, dim=1)
    values = (weight_OI / each).clamp(-448, 448).to(E4M3)
    parts = {"weight": values, "weight_scale": (exponent_OG + 127).to(torch.uint8)}
    return parts, values.float() * each


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


HF = {"quant_method": "fp8"}
STATIC = HF | {"activation_scheme": "static"}
FLOATS, INTS = compressed("float-quantized"), compressed("int-quantized")
BLOCKS = compressed("float-quantized", strategy="block", block_structure=[32, 48])
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
MODELOPT4 = {"quant_method": "modelopt_fp4", "quant_algo": "NVFP4", "group_size": 16}
BF16 = torch.Tensor.bfloat16

FORMATS: dict[str, tuple[dict[str, Any], Quantize, str]] = {
    "fp8, one scale": (HF, partial(fp8, kind="tensor", form=lambda s: s[0, 0]), FP8_GROUP),
    "fp8, one scale, of transformers": (
        STATIC | {"weight_block_size": None},
        partial(
            fp8,
            kind="tensor",
            name="weight_scale_inv",
            form=lambda s: s[0, 0],
            activation_scale=ONE[0],
        ),
        FP8_GROUP,
    ),
    "fp8, static activations": (
        STATIC,
        partial(fp8, kind="tensor", form=lambda s: s[0], input_scale=ONE, output_scale=ONE),
        FP8_GROUP,
    ),
    "fp8, a scale for each channel": (HF, partial(fp8, kind="channel"), FP8_GROUP),
    "fbgemm_fp8": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        partial(fp8, kind="channel", input_scale_ub=ONE),
        FP8_GROUP,
    ),
    "compressed float, one scale": (
        FLOATS,
        partial(fp8, kind="tensor", form=lambda s: s[0], input_scale=ONE, k_scale=ONE),
        FP8_GROUP,
    ),
    "compressed float, channels": (FLOATS, partial(fp8, kind="channel"), FP8_GROUP),
    "compressed float, groups": (FLOATS, partial(fp8, kind="group"), FP8_GROUP),
    "compressed float, blocks": (BLOCKS, partial(fp8, kind="block"), FP8_GROUP),
    "compressed float, naive": (
        compressed("naive-quantized"),
        partial(fp8, kind="channel"),
        FP8_GROUP,
    ),
    "compressed mxfp8": (compressed("mxfp8-quantized"), mxfp8, FP8_GROUP),
    "compressed int, channels": (INTS, partial(int8, kind="channel"), INT8_GROUP),
    "compressed int, one scale": (INTS, partial(int8, kind="tensor"), INT8_GROUP),
    "compressed int, groups": (INTS, partial(int8, kind="group"), INT8_GROUP),
    "compressed int, zeros of 0": (INTS, partial(int8, kind="channel", zero=0), INT8_GROUP),
    "compressed int, asymmetric activations": (
        INTS,
        partial(int8, kind="channel", input_scale=ONE, input_zero_point=ONE.to(torch.int8)),
        INT8_GROUP,
    ),
    "compressed int, asymmetric": (INTS, partial(int8, kind="channel", zero=-9), DENSE),
    "compressed nvfp4": (
        compressed("nvfp4-pack-quantized"),
        partial(nvfp4, by_modelopt=False),
        INT8_GROUP,
    ),
    "compressed mxfp4": (compressed("mxfp4-pack-quantized"), mxfp4, MXFP4),
    "modelopt fp8": (
        MODELOPT,
        partial(fp8, kind="tensor", form=lambda s: s[0, 0], input_scale=ONE[0], k_scale=ONE[0]),
        FP8_GROUP,
    ),
    "modelopt fp8, channels": (
        MODELOPT | {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        partial(fp8, kind="channel", form=lambda s: s[:, 0]),
        FP8_GROUP,
    ),
    "modelopt nvfp4": (MODELOPT4, partial(nvfp4, by_modelopt=True), INT8_GROUP),
}
"""Configuration, quantiser, and the layout that a matrix becomes."""


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_gives_the_ids_of_its_dequantised_weights(save: Save, name: str) -> None:
    config, quantize, layout = FORMATS[name]
    saved = save("qwen3", **SIZES)
    write_quantized(saved, quantize, config)
    assert open_folder(saved.path).index[f"{UP}.weight"].layout == layout
    loaded = load(saved.path)
    assert_same_ids(saved, loaded)
    if layout != DENSE:
        assert weight_bytes(loaded.model) < 0.7 * sum(p.nbytes for p in saved.oracle.parameters())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("begin", "end"), [(0, 96), (3, 29), (40, 41)])
def test_any_rows_are_exactly_what_the_file_stands_for(
    save: Save, name: str, begin: int, end: int
) -> None:
    config, quantize, layout = FORMATS[name]
    saved = save("qwen3", **SIZES)
    write_quantized(saved, quantize, config)
    stored = open_folder(saved.path).index[f"{UP}.weight"]
    parts = {n: torch.from_numpy(p.copy()) for n, p in stored.read(begin, end).items()}
    if layout == FP8_GROUP:
        parts["weight"] = parts["weight"].view(E4M3)
    got = dequantize(layout, parts, torch.float32)
    want = saved.oracle.state_dict()[f"{UP}.weight"][begin:end]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["fp8, one scale", "compressed int, channels", "modelopt nvfp4", "compressed mxfp4"]
)
def test_two_ranks_have_the_logits_of_one(save: Save, name: str) -> None:
    config, quantize, _ = FORMATS[name]
    saved = save("qwen3", **SIZES | {"intermediate_size": 128})
    write_quantized(saved, quantize, config)
    want = saved.logits(IDS)

    def run(group: ThreadGroup) -> Tensor:
        return load(saved.path, context(tp=group)).step(a=IDS)

    for got in on_ranks(2, run):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("name", ["fp8, one scale", "compressed int, channels", "modelopt nvfp4"])
def test_experts_come_in_it_too(save: Save, name: str) -> None:
    config, quantize, _ = FORMATS[name]
    saved = save("deepseek_v2", moe_intermediate_size=48)
    write_quantized(saved, quantize, config, marker="experts.")
    want = saved.logits(IDS)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_modelopt_s_file_of_its_own_is_read(save: Save) -> None:
    saved = save("llama")
    write_quantized(saved, FORMATS["modelopt fp8"][1], {})
    settings = {
        "producer": {"name": "modelopt", "version": "0.29.0"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    }
    (saved.path / "hf_quant_config.json").write_text(json.dumps(settings))
    assert_same_ids(saved, load(saved.path))


def test_modelopt_s_layers_may_have_algorithms_of_their_own(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    kinds = [FORMATS["modelopt fp8"][1], FORMATS["modelopt nvfp4"][1]]

    def by_turns(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        kinds.reverse()
        return kinds[0](weight_OI)

    layers = {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4"}}
    mixed = MODELOPT | {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    write_quantized(saved, by_turns, mixed)
    assert_same_ids(saved, load(saved.path))
    layers["b"]["quant_algo"] = "W4A8_AWQ"
    configure(saved, mixed)
    with pytest.raises(UnsupportedError, match="quantized_layers b 'W4A8_AWQ'"):
        open_folder(saved.path)


def test_compressed_modules_may_have_formats_of_their_own(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    names = ["compressed float, channels", "compressed int, channels", "compressed nvfp4"]
    kinds = [FORMATS[name][1] for name in names]

    def by_turns(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        kinds.append(kinds.pop(0))
        return kinds[0](weight_OI)

    write_quantized(saved, by_turns, compressed("mixed-precision"))
    assert_same_ids(saved, load(saved.path))


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("fp8, one scale", lambda t: t.pop(f"{UP}.weight_scale"), "weight_scale_inv is not there"),
        (
            "fp8, one scale",
            lambda t: t.update({f"{UP}.weight_scale": torch.ones(3)}),
            r"weight_scale is \[3\], of a weight \[96, 64\]; one, one for each row",
        ),
        (
            "fp8, one scale",
            lambda t: t.update({f"{UP}.weight": torch.ones(0, 64).to(E4M3)}),
            r"of a weight \[0, 64\]; a weight has elements",
        ),
        (
            "compressed int, channels",
            lambda t: t.pop(f"{UP}.weight_scale"),
            "weight_scale is not there",
        ),
        (
            "compressed int, asymmetric",
            lambda t: t.update({f"{UP}.weight_zero_point": torch.ones(3).to(torch.int8)}),
            r"weight_zero_point is \[3\]",
        ),
        ("modelopt nvfp4", lambda t: t.pop(f"{UP}.weight_scale_2"), "weight_scale_2 is not there"),
        ("modelopt nvfp4", lambda t: t.pop(f"{UP}.weight_scale"), "weight_scale is not there"),
        (
            "compressed nvfp4",
            lambda t: t.update({f"{UP}.weight_global_scale": torch.ones(2)}),
            r"weight_global_scale is \[2\]; one number is expected",
        ),
        (
            "compressed mxfp4",
            lambda t: t.update({f"{UP}.weight_scale": torch.ones(96, 4).to(torch.uint8)}),
            r"weight_scale is \[96, 4\]; .*make it \[96, 2\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    save: Save, name: str, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    config, quantize, _ = FORMATS[name]
    saved = save("qwen3", **SIZES)
    write_quantized(saved, quantize, config)
    change(saved, edit)
    with pytest.raises(CheckpointError, match=message):
        open_folder(saved.path)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "fp8, one scale",
            lambda t: t.update({f"{UP}.weight": torch.ones(96, 64).to(torch.float8_e5m2)}),
            "up_proj.weight is float8_e5m2",
        ),
        (
            "fp8, one scale",
            lambda t: t.update({f"{UP}.weight": torch.ones(2, 2, 96, 64).to(E4M3)}),
            "up_proj.weight has 4 dimensions",
        ),
        (
            "compressed float, channels",
            lambda t: t.update({f"{UP}.weight_zero_point": torch.ones(96, 1)}),
            "weight_zero_point holds other numbers than 0",
        ),
        (
            "compressed nvfp4",
            lambda t: t.update({f"{UP}.weight_zero_point": torch.ones(96, 1)}),
            "weight_zero_point makes 4-bit floating point numbers asymmetric",
        ),
        (
            "modelopt nvfp4",
            lambda t: t.update({f"{UP}.pre_quant_scale": torch.ones(64)}),
            "up_proj.pre_quant_scale scales activations",
        ),
    ],
)
def test_forms_that_we_cannot_read_are_refused_by_name(
    save: Save, name: str, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    config, quantize, _ = FORMATS[name]
    saved = save("qwen3", **SIZES)
    write_quantized(saved, quantize, config)
    change(saved, edit)
    with pytest.raises(UnsupportedError, match=message):
        open_folder(saved.path)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (MODELOPT | {"quant_algo": "FP8_PB_WO"}, UnsupportedError, "quant_algo 'FP8_PB_WO'"),
        (HF | {"weight_block_size": [128]}, CheckpointError, r"weight_block_size \[128\]"),
        (
            compressed("float-quantized", block_structure=[32]),
            CheckpointError,
            r"block_structure '\[32\]'",
        ),
        (compressed("float-quantized", block_structure=[0, 3]), CheckpointError, "block_structure"),
        (FLOATS | {"format": ["float-quantized"]}, UnsupportedError, "format "),
        (FLOATS | {"config_groups": [1]}, CheckpointError, "config_groups"),
        (FLOATS | {"config_groups": {"a": 3}}, CheckpointError, "a '3'"),
        (FLOATS | {"sparsity_config": "dense"}, CheckpointError, "sparsity_config 'dense'"),
        (MODELOPT | {"quant_algo": ["FP8"]}, UnsupportedError, "quant_algo"),
        (
            MODELOPT | {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": 1}},
            UnsupportedError,
            "quantized_layers a 1",
        ),
    ],
)
def test_settings_that_we_cannot_read_are_refused(
    save: Save, config: dict[str, Any], error: type[Exception], message: str
) -> None:
    saved = save("qwen3", **SIZES)
    configure(saved, config)
    with pytest.raises(error, match=message):
        open_folder(saved.path)
