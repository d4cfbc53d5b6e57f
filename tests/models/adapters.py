"""Small random adapters as PEFT saves them, with the adapted models that are the oracles."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Adapted:
    """An adapter on disk and the model with it."""

    def __init__(self, path: Path, oracle: Any) -> None:
        self.path, self.oracle = path, oracle

    def logits(self, ids: list[int]) -> Tensor:
        with torch.no_grad():
            return self.oracle(torch.tensor([ids])).logits[0]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        found = list(ids)
        for _ in range(count):
            found.append(int(self.logits(found)[-1].argmax()))
        return found[len(ids) :]


def adapt(
    oracle: transformers.PreTrainedModel, path: Path, *, seed: int, **options: Any
) -> Adapted:
    """Save an adapter of ``oracle``, with PEFT's options, whose additions matter."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL} | options)
    model = peft.get_peft_model(copy.deepcopy(oracle), config).eval()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value.data, std=0.1)
    model.save_pretrained(path)
    return Adapted(path, model)


def edit_config(path: Path, **changes: Any) -> None:
    """Change values of a saved adapter's configuration."""
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
