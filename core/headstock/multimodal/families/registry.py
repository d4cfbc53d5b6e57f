"""Which file here reads the processor of which model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from headstock.multimodal.families import (
    gemma3,
    gemma4,
    glm4v,
    idefics3,
    internvl,
    kimi_k25,
    llama4,
    llava,
    llava_next,
    mistral3,
    qwen_vl,
)
from headstock.multimodal.families.files import Files, Settings, open_files
from headstock.multimodal.family import Family

READERS: Mapping[str, Callable[[Files], Family]] = {
    "gemma3": gemma3.read,
    "gemma4": gemma4.read,
    "glm4v": glm4v.read,
    "glm4v_moe": glm4v.read,
    "glm46v": glm4v.read,
    "glm_ocr": glm4v.read,
    "idefics3": idefics3.read,
    "internvl": internvl.read,
    "kimi_k25": kimi_k25.read,
    "llama4": llama4.read,
    "llava": llava.read,
    "llava_next": llava_next.read,
    "llava_onevision": llava_next.read,
    "mistral3": mistral3.read,
    "qwen2_vl": qwen_vl.read,
    "qwen2_5_vl": qwen_vl.read,
    "qwen3_5": qwen_vl.read,
    "qwen3_5_moe": qwen_vl.read,
    "qwen3_vl": qwen_vl.read,
    "smolvlm": idefics3.read,
}
"""By ``model_type`` of config.json."""


def find_family(config: Settings, folder: Path) -> Family | None:
    """Return what the model in ``folder`` makes of images; None: it takes none that we know.

    Raises:
        CheckpointError: The settings of its image processor are missing, or ask for what we do not
            compute.
    """
    read = READERS.get(str(config.get("model_type")))
    return None if read is None else read(open_files(config, folder))
