"""Which file here reads the processor of which model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from headstock.multimodal.family import Family

READERS: Mapping[str, str] = {
    "gemma3": "gemma3",
    "gemma3n": "gemma3n",
    "gemma4": "gemma4",
    "glm4v": "glm4v",
    "glm4v_moe": "glm4v",
    "glm46v": "glm4v",
    "glm_ocr": "glm4v",
    "idefics3": "idefics3",
    "internvl": "internvl",
    "kimi_k25": "kimi_k25",
    "llama4": "llama4",
    "llava": "llava",
    "llava_next": "llava_next",
    "llava_onevision": "llava_next",
    "mistral3": "mistral3",
    "qwen2_vl": "qwen_vl",
    "qwen2_5_vl": "qwen_vl",
    "qwen3_5": "qwen_vl",
    "qwen3_5_moe": "qwen_vl",
    "qwen3_vl": "qwen_vl",
    "qwen3_vl_moe": "qwen_vl",
    "smolvlm": "idefics3",
}
"""File by ``model_type`` of config.json: imported when a model needs it, most need none."""


def find_family(config: Mapping[str, Any], folder: Path) -> Family | None:
    """Return what the model in ``folder`` makes of images; None: it takes none that we know.

    Raises:
        CheckpointError: The settings of its image processor are missing, or ask for what we do not
            compute.
    """
    name = READERS.get(str(config.get("model_type")))
    if name is None:
        return None
    from headstock.multimodal.families.files import open_files

    reader = import_module(f"{__package__}.{name}")
    return reader.read(open_files(config, folder))
