"""A small Kimi K2.5, and its processor as its authors describe it: without ``torchvision``.

The module of transformers that has the processor needs that package, so that its rules are written
again here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from tests.models.latent_cases import (
    KIMI_TEXT,
)
from tests.vision.conftest import END, ID_OF, PAD, START
from tests.vision.still import WORDS, StillModel, expanded, save

PATCH, MERGE, MAX_PATCHES, MAX_SIDE = 4, 2, 60, 9
MAX_FRAME_PATCHES = 30
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pos_emb_height": 5,
    "pos_emb_width": 5,
    "patch_size": PATCH,
}


@dataclass(frozen=True)
class Settings:
    """What the hub has beside the weights."""

    def save_pretrained(self, path: Path) -> None:
        inner = {
            "in_patch_limit": MAX_PATCHES,
            "patch_limit_on_one_side": MAX_SIDE,
            "patch_size": PATCH,
            "merge_kernel_size": MERGE,
            "fixed_output_tokens": None,
            "in_patch_limit_each_frame": MAX_FRAME_PATCHES,
            "sample_fps": 2.0,
            "temporal_merge_kernel_size": 3,
            "timestamp_mode": "hh:mm:ss.fff",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.4, 0.5, 0.6],
        }
        (path / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": inner}))


def patches_of(image: Image.Image, most: int = MAX_PATCHES) -> tuple[torch.Tensor, list[int]]:
    """Return the patches of an image, row by row, and its grid. [N, 3, PATCH, PATCH]"""
    wide, tall = image.size
    count = max(1.0, wide // PATCH) * max(1.0, tall // PATCH)
    longest = MAX_SIDE * PATCH
    scale = min(1.0, math.sqrt(most / count), longest / wide, longest / tall)
    wide, tall = min(int(wide * scale), longest), min(int(tall * scale), longest)
    shown = np.asarray(image.resize((wide, tall), Image.Resampling.BICUBIC))
    unit = PATCH * MERGE
    shown = np.pad(shown, ((0, -tall % unit), (0, -wide % unit), (0, 0)))
    values = (torch.from_numpy(shown) / 255 - 0.5) / torch.tensor([0.4, 0.5, 0.6])
    rows, columns = shown.shape[0] // PATCH, shown.shape[1] // PATCH
    cut = values.view(rows, PATCH, columns, PATCH, 3).permute(0, 2, 4, 1, 3)
    return cut.reshape(-1, 3, PATCH, PATCH), [1, rows, columns]


def make_kimi_k25(path: Path) -> StillModel:
    """Return one whose positions of 5 x 5 patches are resampled."""
    config = transformers.Kimi_K25Config(
        text_config=WORDS | KIMI_TEXT | {"num_key_value_heads": 4},
        vision_config=VISION,
        projection_hidden_size=32,
        image_token_id=PAD,
        video_token_id=ID_OF["<|video_pad|>"],
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )
    oracle = save(path, config, "Kimi_K25", Settings())

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        counts: list[int] = []
        if images:
            cut = [patches_of(image) for image in images]
            grids = torch.tensor([grid for _, grid in cut])
            patches = torch.cat([patches for patches, _ in cut])
            found = {"pixel_values": patches, "image_grid_thw": grids}
            counts = [int(grid.prod()) // MERGE**2 for grid in grids]
        return {"input_ids": expanded(ids, counts), **found}

    return StillModel(path, oracle, prepare)
