"""Checkpoints of bitsandbytes; the test dequantises as the format's description has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.loader import weight_bytes
from headstock.ops.canonical import dequantize
from headstock.ops.linear import INT8_GROUP
from tests.models.conftest import Save, Saved
from tests.models.harness import load
from tests.models.quantized_folders import IDS, assert_same_ids, change, write_quantized

UP = "model.layers.0.mlp.up_proj"
CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
NF4 = torch.tensor([
    -1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0,
    0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1,
])  # fmt: skip
FP4 = torch.tensor([0, 0.0052, 0.6667, 1, 0.3333, 0.5, 0.1667, 0.25])
FP4 = torch.cat((FP4, -FP4))
BLOCK, NESTED_BLOCK, OFFSET = 64, 32, 0.11


def four_bits(
    weight_OI: Tensor, *, kind: str, is_nested: bool, storage: torch.dtype = torch.uint8
) -> tuple[dict[str, Tensor], Tensor]:
    table = {"nf4": NF4, "fp4": FP4}[kind]
    flat = weight_OI.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))
    largest = blocks.abs().amax(dim=1)
    state = {
        "quant_type": kind,
        "blocksize": BLOCK,
        "dtype": "float32",
        "shape": list(weight_OI.shape),
    }
    parts = {"weight.quant_map": table, "weight.absmax": largest}
    if is_nested:
        map_256 = torch.linspace(-1, 1, 256)
        groups = (largest - OFFSET).split(NESTED_BLOCK)
        of_nested = torch.stack([group.abs().max() for group in groups])
        each = of_nested.repeat_interleave(NESTED_BLOCK)[: len(largest)]
        code = ((largest - OFFSET) / each).sub(map_256.unsqueeze(1)).abs().argmin(dim=0)
        largest = map_256[code] * each + OFFSET
        parts |= {"weight.absmax": code.to(torch.uint8), "weight.nested_quant_map": map_256}
        parts |= {"weight.nested_absmax": of_nested}
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_offset": OFFSET}
    code = (blocks / largest.unsqueeze(1)).flatten()[: len(flat)]
    code = code.sub(table.unsqueeze(1)).abs().argmin(dim=0)
    meant = table[code] * largest.repeat_interleave(BLOCK)[: len(flat)]
    code = code.to(torch.uint8)
    packed = (code[0::2] << 4 | code[1::2]).view(storage).unsqueeze(1)
    text = torch.from_numpy(np.frombuffer(json.dumps(state).encode(), np.uint8).copy())
    parts |= {"weight": packed, f"weight.quant_state.bitsandbytes__{kind}": text}
    return parts, meant.view_as(weight_OI)


def eight_bits(weight_OI: Tensor, order: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    largest = weight_OI.abs().amax(dim=1)
    values = (weight_OI / largest.unsqueeze(1) * 127).round()
    parts = {"weight": values.to(torch.int8), "SCB": largest}
    return parts | {"weight_format": torch.tensor(order).to(torch.uint8)}, values * (
        largest / 127
    ).unsqueeze(1)


NF4_TWICE = partial(four_bits, kind="nf4", is_nested=True)
FOUR_BITS = {
    "nf4": partial(four_bits, kind="nf4", is_nested=False),
    "nf4, twice": NF4_TWICE,
    "nf4 in bfloat16": partial(four_bits, kind="nf4", is_nested=True, storage=torch.bfloat16),
    "fp4": partial(four_bits, kind="fp4", is_nested=False),
}


def written(save: Save, quantize: Callable[..., tuple[dict[str, Tensor], Tensor]]) -> Saved:
    saved = save("qwen3", intermediate_size=96)
    write_quantized(saved, quantize, CONFIG)
    return saved


@pytest.mark.parametrize("name", FOUR_BITS)
@pytest.mark.parametrize("inner", [96, 72])
def test_four_bits_are_what_the_file_stands_for_but_for_the_rounding(
    save: Save, name: str, inner: int
) -> None:
    saved = save("qwen3", intermediate_size=inner)
    write_quantized(saved, FOUR_BITS[name], CONFIG)
    down = "model.layers.0.mlp.down_proj.weight"
    stored = open_folder(saved.path).index[down]
    for begin, end in ((0, stored.shape[0]), (3, 29), (40, 41)):
        parts = {n: torch.from_numpy(p.copy()) for n, p in stored.read(begin, end).items()}
        got = dequantize(INT8_GROUP, parts, torch.float32)
        want = saved.oracle.state_dict()[down][begin:end]
        most = parts["scale"].repeat_interleave(stored.group_size, dim=1) * 0.5001
        assert ((got - want).abs() <= most).all()


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bits_give_the_ids_of_the_dequantised_model(save: Save, name: str) -> None:
    saved = written(save, FOUR_BITS[name])
    loaded = load(saved.path)
    want = saved.logits(IDS)
    got = loaded.step(a=IDS)
    assert (got - want).norm() / want.norm() < 0.02
    assert (got.argmax(dim=-1) == want.argmax(dim=-1)).all()
    for key, tensor in open_folder(saved.path).index.items():
        if "_proj" in key:
            parts = {n: torch.from_numpy(p.copy()) for n, p in tensor.read_all().items()}
            saved.oracle.state_dict()[key].copy_(dequantize(INT8_GROUP, parts, torch.float32))
    assert_same_ids(saved, load(saved.path))
    assert weight_bytes(loaded.model) < 0.7 * sum(p.nbytes for p in saved.oracle.parameters())


def test_eight_bits_give_the_ids_of_the_dequantised_model(save: Save) -> None:
    saved = written(save, eight_bits)
    assert open_folder(saved.path).index[f"{UP}.weight"].layout == INT8_GROUP
    assert_same_ids(saved, load(saved.path))


def test_another_order_of_eight_bits_is_refused_by_name(save: Save) -> None:
    saved = written(save, partial(eight_bits, order=2))
    with pytest.raises(UnsupportedError, match=r"weight_format is 2"):
        open_folder(saved.path)


def test_a_weight_without_a_state_that_is_known_is_refused(save: Save) -> None:
    saved = written(save, NF4_TWICE)
    change(saved, lambda t: t.pop(f"{UP}.weight.quant_state.bitsandbytes__nf4"))
    with pytest.raises(UnsupportedError, match=r"up_proj.weight has no quant_state"):
        open_folder(saved.path)


@pytest.mark.parametrize("part", ["absmax", "nested_absmax", "nested_quant_map"])
def test_a_part_that_is_missing_or_of_another_size_is_refused_by_name(
    save: Save, part: str
) -> None:
    saved = written(save, NF4_TWICE)
    change(saved, lambda t: t.update({f"{UP}.weight.{part}": t[f"{UP}.weight.{part}"][1:]}))
    with pytest.raises(CheckpointError, match=rf"up_proj.weight.{part} is "):
        open_folder(saved.path)
    change(saved, lambda t: t.pop(f"{UP}.weight.{part}"))
    with pytest.raises(CheckpointError, match=rf"up_proj.weight.{part} is not there"):
        open_folder(saved.path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"shape": [4], "blocksize": 64}',
        '{"shape": [96, 64], "blocksize": 0}',
        '{"shape": [96, 64], "blocksize": "a"}',
        '{"shape": [9600, 64], "blocksize": 64}',
        '{"shape": [96, 63], "blocksize": 64}',
    ],
)
def test_a_state_of_no_matrix_is_refused_by_name(save: Save, text: str) -> None:
    saved = written(save, NF4_TWICE)
    name = f"{UP}.weight.quant_state.bitsandbytes__nf4"
    change(saved, lambda t: t.update({name: torch.tensor(list(text.encode()), dtype=torch.uint8)}))
    with pytest.raises(CheckpointError, match=r"up_proj.weight"):
        open_folder(saved.path)


def test_the_tensors_of_other_modules_stay(save: Save) -> None:
    saved = written(save, NF4_TWICE)
    names = set(load_file(saved.path / "model.safetensors"))
    kept = {n for n in names if ".weight." not in n}
    assert set(open_folder(saved.path).index) == kept
