"""What the formats' own libraries write, read by us, against what they dequantise it to.

They are no requirement of the tests: `pip install compressed-tensors bitsandbytes nvidia-modelopt`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from headstock.checkpoint.formats import OwnReaders
from headstock.checkpoint.safetensors_file import read_safetensors
from headstock.ops.canonical import dequantize
from headstock.ops.linear import FP8_GROUP
from tests.models.quantized_folders import Quantize

ROWS, COLUMNS = 96, 256


def drawn() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(ROWS, COLUMNS)


def read_back(path: Path, parts: dict[str, Tensor], quantization: dict[str, Any]) -> Tensor:
    """Write a module's tensors and return what we say they stand for."""
    written = {f"m.{name}": tensor.clone().contiguous() for name, tensor in parts.items()}
    save_file(written, path / "m.safetensors")
    index = {tensor.name: tensor for tensor in read_safetensors(path / "m.safetensors")}
    found = OwnReaders().load(quantization["quant_method"])(index, quantization)
    assert list(found) == ["m.weight"]
    stored = found["m.weight"]
    read = {name: torch.from_numpy(part.copy()) for name, part in stored.read_all().items()}
    if stored.layout == FP8_GROUP:
        read["weight"] = read["weight"].view(torch.float8_e4m3fn)
    return dequantize(stored.layout, read, torch.float32)


SCHEMES: dict[str, dict[str, Any]] = {
    "pack-quantized": {"num_bits": 4, "strategy": "group", "group_size": 32},
    "pack-quantized, asymmetric": {
        "num_bits": 4,
        "strategy": "group",
        "group_size": 32,
        "symmetric": False,
    },
    "pack-quantized, channels": {"num_bits": 4, "strategy": "channel"},
    "pack-quantized, 8 bits": {"num_bits": 8, "strategy": "group", "group_size": 64},
    "pack-quantized, 8 bits asymmetric": {
        "num_bits": 8,
        "strategy": "channel",
        "symmetric": False,
    },
    "int-quantized": {"num_bits": 8, "strategy": "channel"},
    "int-quantized, one scale": {"num_bits": 8, "strategy": "tensor"},
    "int-quantized, asymmetric": {"num_bits": 8, "strategy": "channel", "symmetric": False},
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "float-quantized, one scale": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    "float-quantized, blocks": {
        "num_bits": 8,
        "type": "float",
        "strategy": "block",
        "block_structure": [64, 128],
    },
    "nvfp4-pack-quantized": {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "group_size": 16,
    },
    "mxfp4-pack-quantized": {
        "num_bits": 4,
        "type": "float",
        "strategy": "group",
        "group_size": 32,
        "scale_dtype": torch.uint8,
    },
    "mxfp8-quantized": {
        "num_bits": 8,
        "type": "float",
        "strategy": "group",
        "group_size": 32,
        "scale_dtype": torch.uint8,
    },
}


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors_dequantises_to_the_same(tmp_path: Path, name: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    form, weight = name.partition(",")[0], drawn()
    args = QuantizationArgs(**SCHEMES[name])
    rows, columns = {
        "tensor": (ROWS, COLUMNS),
        "channel": (1, COLUMNS),
        "block": tuple(args.block_structure or (1, 1)),
    }.get(args.strategy, (1, args.group_size))
    grid = torch.nn.functional.pad(weight, (0, -COLUMNS % columns, 0, -ROWS % rows))
    cells = grid.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2).flatten(2)
    least, most = cells.amin(dim=-1), cells.amax(dim=-1)
    whole = generate_gparam(weight.min(), weight.max()) if form.startswith("nvfp4") else None
    scale, zero = calculate_qparams(least, most, args, global_scale=whole)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    if whole is not None:
        state["weight_global_scale"] = whole
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    parts = compressor.compress(state, scheme)
    want = compressor.decompress(parts, scheme)["weight"].float()
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": {"block_structure": args.block_structure}}},
    }
    rtol = 5e-3 if whole is not None else 1e-5  # NVFP4 is dequantised in bfloat16 there
    torch.testing.assert_close(read_back(tmp_path, parts, config), want, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("block", [64, 128])
def test_bitsandbytes_dequantises_to_the_same_but_for_the_rounding(
    tmp_path: Path, kind: str, is_nested: bool, block: int
) -> None:
    library = pytest.importorskip("bitsandbytes.functional")
    weight = drawn()
    packed, state = library.quantize_4bit(
        weight, blocksize=block, compress_statistics=is_nested, quant_type=kind
    )
    want = library.dequantize_4bit(packed, state)
    below = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    got = read_back(tmp_path, {"weight": packed, **below}, {"quant_method": "bitsandbytes"})
    largest = weight.flatten().unflatten(0, (-1, block)).abs().amax(dim=1)
    most = largest.repeat_interleave(block).view_as(weight) / 254 * 1.1
    assert ((got - want).abs() <= most).all()


def test_bitsandbytes_has_the_same_eight_bits(tmp_path: Path) -> None:
    library = pytest.importorskip("bitsandbytes.functional")
    values, largest, _ = library.int8_vectorwise_quant(drawn().half())
    want = library.int8_vectorwise_dequant(values, largest)
    parts = {"weight": values, "SCB": largest, "weight_format": torch.tensor(0).to(torch.uint8)}
    got = read_back(tmp_path, parts, {"quant_method": "bitsandbytes"})
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)


def nvfp4_of_modelopt(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    tensors = pytest.importorskip("modelopt.torch.quantization.qtensor")
    packed, scale, of_all = tensors.NVFP4QTensor.quantize(weight_OI, 16)
    parts = {"weight": packed._quantized_data, "weight_scale": scale, "weight_scale_2": of_all}
    return parts, packed.dequantize(scale=scale, double_scale=of_all, block_sizes={-1: 16})


def fp8_of_modelopt(
    weight_OI: Tensor, *, axis: int | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    tensors = pytest.importorskip("modelopt.torch.quantization.qtensor")
    packed, scale = tensors.FP8QTensor.quantize(weight_OI, axis=axis)
    parts = {"weight": packed._quantized_data, "weight_scale": scale.squeeze()}
    return parts, packed.dequantize(scale=scale)


@pytest.mark.parametrize(
    ("algorithm", "quantize"),
    [
        ("NVFP4", nvfp4_of_modelopt),
        ("FP8", fp8_of_modelopt),
        ("FP8_PER_CHANNEL_PER_TOKEN", partial(fp8_of_modelopt, axis=0)),
    ],
)
def test_modelopt_dequantises_to_the_same(
    tmp_path: Path, algorithm: str, quantize: Quantize
) -> None:
    parts, want = quantize(drawn())
    config = {"quant_method": "modelopt", "quant_algo": algorithm}
    got = read_back(tmp_path, parts, config)
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)
