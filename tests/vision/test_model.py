"""The model by itself: what it calls, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from headstock.checkpoint.folder import open_folder
from headstock.errors import UnsupportedError
from headstock.graph.axes import interleaved_axes
from headstock.graph.build import build_model
from headstock.graph.loader import load_weights
from headstock.ops.attention import StepMedia
from headstock.testing.oracle.watch import Watch, WatchedResolver, watched
from headstock_models.qwen3_vl import Qwen3VLForConditionalGeneration
from tests.models.harness import Sequences, context
from tests.vision.conftest import VisionModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoder_and_decoder_call_ops_and_views_only(vl: VisionModel, dtype: torch.dtype) -> None:
    watch = Watch()
    ctx = context(ops=WatchedResolver(watch), dtype=dtype)
    files = open_folder(vl.path)
    model = build_model(Qwen3VLForConditionalGeneration, ctx, files.config)
    load_weights(model, files, ctx)
    assert model.media is not None
    pixels_NP = torch.randint(0, 256, (24, 96), dtype=torch.uint8)
    ones = torch.ones(3)
    with watch:
        features_MF = model.media.encode(
            pixels_NP, [(1, 4, 4), (1, 2, 4)], ones, ones, watched(torch.from_numpy, watch)
        )
    assert features_MF.shape == (6, 3 * 64)
    assert features_MF.dtype == dtype
    batch = Sequences(model, ctx).batch({"a": 6, "b": 1})
    rows_T = torch.tensor([-1, 0, 1, 2, 3, -1, -1], dtype=torch.int32)
    for view in batch.groups:
        view.shifts_AT = torch.zeros((3, 7), dtype=torch.int32)
        view.media = StepMedia(rows_T, features_MF)
    ids_T = torch.arange(7)
    with watch:
        model.logits(model(ids_T, batch))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision_config", "out_hidden_size", 32),
        ("vision_config", "deepstack_visual_indexes", [0, 1, 2]),
        ("vision_config", "deepstack_visual_indexes", [7]),
        ("vision_config", "hidden_act", "mish"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    vl: VisionModel, tmp_path: Path, part: str, key: str, value: object
) -> None:
    shutil.copytree(vl.path, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config[part][key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=key):
        build_model(
            Qwen3VLForConditionalGeneration, context(), open_folder(tmp_path / "model").config
        )


def test_axes_take_turns_as_transformers_has_them() -> None:
    """``recomposition_frequencies``: height and width overwrite every third frequency."""
    sections = [8, 4, 4]
    want = np.zeros(16, int)
    for axis in (1, 2):
        want[axis : sections[axis] * 3 : 3] = axis
    assert interleaved_axes(sections) == want.tolist()
    assert interleaved_axes([24, 20, 20]).count(1) == 20
