"""Writes checkpoints whose matrices are quantised, and gives the oracle what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.conftest import Saved
from tests.models.harness import Sequences

Quantize = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
"""From a matrix to a module's tensors, by the last part of their names, and what they stand for."""
IDS = [5, 9, 1, 77, 31]


def write_quantized(
    saved: Saved, quantize: Quantize, quantization: dict[str, Any], marker: str = "_proj"
) -> None:
    """Let the checkpoint have its matrices in a format, and the oracle what they stand for."""
    tensors, written = load_file(saved.path / "model.safetensors"), dict[str, Tensor]()
    torch.manual_seed(1)
    for key, value in tensors.items():
        if marker not in key or value.ndim != 2:
            written[key] = value
            continue
        parts, meant = quantize(value)
        module = key.removesuffix("weight")
        written |= {module + part: tensor.clone().contiguous() for part, tensor in parts.items()}
        value.copy_(meant)
    save_file(tensors, saved.path / "model.safetensors")
    loader = type(saved.oracle)
    saved.oracle = loader.from_pretrained(saved.path, attn_implementation="eager").eval()
    save_file(written, saved.path / "model.safetensors")
    configure(saved, quantization)


def configure(saved: Saved, quantization: dict[str, Any]) -> None:
    """Have ``quantization_config`` in the checkpoint's configuration."""
    config = json.loads((saved.path / "config.json").read_text())
    config["quantization_config"] = quantization
    (saved.path / "config.json").write_text(json.dumps(config))


def change(saved: Saved, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edit the checkpoint's tensors."""
    tensors = load_file(saved.path / "model.safetensors")
    edit(tensors)
    save_file(tensors, saved.path / "model.safetensors")


def assert_same_ids(saved: Saved, loaded: Sequences, count: int = 8) -> None:
    """Compare the logits of a prompt, and then the ids of a greedy generation."""
    want = saved.logits(IDS)
    got = loaded.step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    ids = list(IDS)
    for _ in range(count):
        ids.append(int(got[-1].argmax()))
        got = loaded.step(a=ids[-1:])
    prompt = torch.tensor([IDS])
    made = saved.oracle.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert ids == made[0].tolist()
