"""Kimi K2.5's encoder: frames as one, names of both kinds, sizes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.build import build_model
from headstock.graph.loader import load_weights
from headstock.multimodal.families import find_family
from headstock.multimodal.patches import padded_size
from headstock_models.kimi_k25 import KimiK25ForConditionalGeneration
from tests.models.harness import context
from tests.vision.claims import ONE
from tests.vision.conftest import PAD
from tests.vision.kimi import make_kimi_k25
from tests.vision.still import StillModel, features

SCALES = (torch.tensor([1 / 255] * 3), torch.tensor([-0.5] * 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StillModel:
    return make_kimi_k25(tmp_path_factory.mktemp("kimi") / "tiny-kimi")


def loaded(path: Path) -> KimiK25ForConditionalGeneration:
    files, ctx = open_folder(path), context()
    made = build_model(KimiK25ForConditionalGeneration, ctx, files.config)
    files.rename(made.named)
    load_weights(made, files, ctx)
    assert isinstance(made, KimiK25ForConditionalGeneration)
    return made


def test_frames_of_one_item_become_its_tokens_as_in_transformers(model: StillModel) -> None:
    """Three frames beside an image and two frames: waves tell them apart, then the mean counts."""
    grids = [(3, 4, 6), (1, 2, 4), (2, 6, 2)]
    torch.manual_seed(1)
    squares = [torch.randint(0, 256, (t, h, w, 48), dtype=torch.uint8) for t, h, w in grids]
    theirs = torch.cat([s.reshape(-1, 3, 4, 4) for s in squares]) / 255 - 0.5
    with torch.inference_mode():
        given = {"pixel_values": theirs, "image_grid_thw": torch.tensor(grids)}
        want = torch.cat(list(model.oracle.model.get_image_features(**given).pooler_output))
        ours = [
            s.view(t, h // 2, 2, w // 2, 2, 48).transpose(2, 3).reshape(-1, 48)
            for s, (t, h, w) in zip(squares, grids, strict=True)
        ]
        media = loaded(model.path).media
        assert media is not None
        got = media.encode(torch.cat(ours), grids, *SCALES, torch.from_numpy)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_names_of_transformers_are_taken_as_those_of_the_hub(
    model: StillModel, tmp_path: Path
) -> None:
    """In memory the matrices are apart, and rows lie in halves."""
    for file in model.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    files = load_file(model.path / "model.safetensors")
    named = {name: value for name, value in files.items() if "language_model" in name}
    for name, value in model.oracle.state_dict().items():
        if "language_model" not in name and name != "lm_head.weight":
            named[name] = value.contiguous()
    assert "model.vision_tower.layers.0.attn.q_proj.weight" in named
    save_file(named, tmp_path / "model.safetensors")
    torch.testing.assert_close(features(tmp_path, [ONE]), features(model.path, [ONE]))


@pytest.mark.parametrize(
    ("size", "want"),
    [
        ((24, 32), ((24, 32), (28, 56))),
        ((1080, 1920), ((1080, 1920), (1092, 1932))),
        ((3000, 4000), ((1554, 2073), (1568, 2100))),
        ((40, 7900), ((36, 7168), (56, 7168))),
        ((1, 150), ((1, 150), (28, 168))),
    ],
)
def test_sizes_are_those_of_transformers(
    size: tuple[int, int], want: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """``navit_resize`` made these; its module needs ``torchvision``."""
    got = padded_size(*size, patch_size=14, merge=2, max_patches=16384, max_side=512)
    assert got == want


@pytest.mark.parametrize(
    ("inner", "named"),
    [
        ({"media_proc_cfg": {"fixed_output_tokens": 64}}, "fixed_output_tokens is 64"),
        ({"media_proc_cfg": {"temporal_merge_kernel_size": 5}}, "5 frames; the encoder takes 4"),
        ({"media_proc_cfg": {"timestamp_mode": "mm:ss"}}, "timestamp_mode is 'mm:ss'"),
        ({"media_proc_cfg": {"in_patch_limit_video": 9}}, "in_patch_limit_video is 9"),
        ({"size": {"max_height": 512, "max_width": 256}}, "height and width have one bound"),
    ],
)
def test_processors_that_do_otherwise_are_refused(
    model: StillModel, tmp_path: Path, inner: dict[str, Any], named: str
) -> None:
    config = json.loads((model.path / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(inner))
    with pytest.raises(CheckpointError, match=named):
        find_family(config, tmp_path)


def test_the_hubs_configuration_is_that_of_transformers(model: StillModel, tmp_path: Path) -> None:
    for file in model.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((model.path / "config.json").read_text())
    ids = {config.pop("image_token_id"): "media_placeholder_token_id"}
    assert list(ids) == [PAD]
    vision = config["vision_config"]
    for new, old in {
        "hidden_size": "vt_hidden_size",
        "intermediate_size": "vt_intermediate_size",
        "num_hidden_layers": "vt_num_hidden_layers",
        "num_attention_heads": "vt_num_attention_heads",
        "pos_emb_height": "init_pos_emb_height",
        "pos_emb_width": "init_pos_emb_width",
        "pos_emb_time": "init_pos_emb_time",
    }.items():
        vision[old] = vision.pop(new)
    vision |= {"merge_type": "sd2_tpool", "mm_hidden_size": 32, "projector_ln_eps": 1e-5}
    del vision["hidden_act"], vision["rope_parameters"]
    del config["projection_hidden_size"], config["projection_layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"media_placeholder_token_id": PAD}))
    torch.testing.assert_close(features(tmp_path, [ONE]), features(model.path, [ONE]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("merge_type", "sd2"),
        ("pos_emb_type", "learned"),
        ("video_attn_type", "spatial"),
        ("mm_projector_type", "patchmergerv2"),
        ("projector_hidden_act", "relu"),
        ("pos_emb_width", 6),
        ("merge_kernel_size", [2, 1]),
        ("mm_hidden_size", 64),
    ],
)
def test_encoders_that_do_otherwise_are_refused(model: StillModel, key: str, value: object) -> None:
    config = json.loads((model.path / "config.json").read_text())
    config["vision_config"][key] = value
    with pytest.raises(UnsupportedError, match=key):
        build_model(KimiK25ForConditionalGeneration, context(), config)
