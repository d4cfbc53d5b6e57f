"""Checkpoints in FP8 with scales of blocks, and weights that are made FP8 at load."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError
from headstock.graph.loader import weight_bytes
from headstock.ops.canonical import dequantize, quantize_fp8
from headstock.ops.linear import FP8_GROUP
from tests.models.conftest import Save, Saved
from tests.models.harness import context, load

IDS = [5, 9, 1, 77, 31]
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "head_dim": 32}


def save_blocks(saved: Saved) -> None:
    """Let the checkpoint have its matrices in FP8, and the oracle what they stand for."""
    file = saved.path / "model.safetensors"
    tensors, written = load_file(file), {}
    for name, value in tensors.items():
        if "_proj" not in name:
            written[name] = value
            continue
        padded = torch.zeros(*(-(-size // 128) * 128 for size in value.shape))
        padded[: value.shape[0], : value.shape[1]] = value
        parts = quantize_fp8(padded, 128)
        written[name] = parts["weight"][: value.shape[0], : value.shape[1]].contiguous()
        written[name + "_scale_inv"] = parts["scale"][::128].contiguous()
        rows = {part: tensor[: value.shape[0]] for part, tensor in parts.items()}
        value.copy_(dequantize(FP8_GROUP, rows, torch.float32)[:, : value.shape[1]])
    saved.oracle.load_state_dict(tensors, strict=False)
    save_file(written, file)
    config = json.loads((saved.path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (saved.path / "config.json").write_text(json.dumps(config))


def test_an_fp8_checkpoint_has_the_logits_of_its_dequantised_weights(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    save_blocks(saved)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, saved.logits(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", [320, 200, 129])
def test_blocks_need_not_divide_the_features(save: Save, inner: int) -> None:
    saved = save("qwen3", **SIZES | {"hidden_size": 160, "intermediate_size": inner})
    save_blocks(saved)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, saved.logits(IDS), rtol=1e-4, atol=1e-4)


def test_a_weight_without_its_scales_is_refused(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    save_blocks(saved)
    file = saved.path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight_scale_inv is not there"):
        open_folder(saved.path)


def test_weights_made_fp8_at_load_stay_close_and_are_smaller(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    ctx = context(quantization="fp8")
    loaded = load(saved.path, ctx)
    want = saved.logits(IDS)
    got = loaded.step(a=IDS)
    assert 0 < (got - want).norm() / want.norm() < 0.1
    assert weight_bytes(loaded.model) < 0.4 * open_folder(saved.path).num_bytes
