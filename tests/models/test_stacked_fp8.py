"""FP8 checkpoints whose experts are one tensor a layer: values [E, A, B], scales of each expert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError
from headstock.testing.oracle.case import Saved
from tests.models.cases import CASES

IDS = [5, 9, 1, 77, 31]
FP8 = torch.float8_e4m3fn


def is_stack(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 3 and name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def narrowed(stack: Tensor, form: str, *, is_turned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales, and what they stand for, computed plainly block by block."""
    _, rows, columns = stack.shape
    unit = {
        "channels": (rows, 1) if is_turned else (1, columns),
        "matrices": (rows, columns),
        "blocks": (32, 16),
    }[form]
    counts = [-(-size // step) for size, step in zip((rows, columns), unit, strict=True)]
    scale = torch.empty(len(stack), *counts)
    codes, meant = torch.empty_like(stack, dtype=FP8), torch.empty_like(stack)
    for i in range(counts[0]):
        for j in range(counts[1]):
            here = (
                slice(None),
                slice(i * unit[0], (i + 1) * unit[0]),
                slice(j * unit[1], (j + 1) * unit[1]),
            )
            scale[:, i, j] = stack[here].abs().amax((1, 2)) / 448
            codes[here] = (stack[here] / scale[:, i, j, None, None]).to(FP8)
            meant[here] = codes[here].float() * scale[:, i, j, None, None]
    return codes, scale.flatten() if form == "matrices" else scale, meant


def save_narrow(folder: Path, name: str, form: str, **keys: Any) -> Saved:
    """Save a family with its stacks in FP8, and have the oracle compute what they stand for."""
    saved = next(case for case in CASES if case.name == name).save(folder)
    file = folder / "model.safetensors"
    tensors, written, meant = load_file(file), {}, {}
    suffix = "_scale_inv" if form == "blocks" else "_scale"
    for key, tensor in tensors.items():
        if not is_stack(key, tensor):
            written[key] = tensor
            continue
        found = narrowed(tensor, form, is_turned=name == "llama4")
        written[key], written[key + suffix], meant[key] = found
    assert meant, "the family keeps its experts in stacks"
    unknown = saved.oracle.load_state_dict(meant, strict=False).unexpected_keys
    assert not unknown, unknown
    save_file(written, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": keys}))
    return saved


METHODS = {
    "channels": {"quant_method": "fbgemm_fp8"},
    "matrices": {"quant_method": "fp8"},
    "blocks": {"quant_method": "fp8", "weight_block_size": [32, 16]},
}


@pytest.mark.parametrize("form", METHODS)
@pytest.mark.parametrize("name", ["llama4", "mistral4"])
def test_stacked_experts_have_the_logits_of_what_they_stand_for(
    tmp_path: Path, name: str, form: str
) -> None:
    """Inputs first, and outputs first; gate and up in one tensor, blocks that reach into both."""
    keys = METHODS[form]
    if form == "blocks" and name == "llama4":  # rows of a block are of outputs: its second size
        keys = keys | {"weight_block_size": [16, 32]}
    saved = save_narrow(tmp_path, name, form, **keys)
    torch.testing.assert_close(saved.load().step(a=IDS), saved.logits(IDS), rtol=1e-4, atol=1e-4)
    layouts = {
        tensor.layout for key, tensor in open_folder(tmp_path).index.items() if "experts." in key
    }
    assert "fp8-group" in layouts


def test_stacks_without_scales_or_with_those_of_other_experts_are_refused(tmp_path: Path) -> None:
    save_narrow(tmp_path, "mistral4", "channels", **METHODS["channels"])
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("down_proj_scale"))
    save_file({**tensors, key: tensors[key][1:].contiguous()}, file)
    with pytest.raises(CheckpointError, match=r"down_proj_scale is .* matrices are expected"):
        open_folder(tmp_path)
    del tensors[key]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="down_proj_scale_inv is not there"):
        open_folder(tmp_path)
