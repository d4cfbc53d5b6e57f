"""Adapters of models that see images: of their text, against PEFT on the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import headstock
from headstock.errors import RequestError
from tests.models.adapters import Adapted, adapt
from tests.vision.claims import CASES, COUNT, SETTINGS, ask
from tests.vision.still import StillModel
from tests.vision.still_families import MAKERS
from tests.vision.test_gemma3 import make_gemma3

OF_TEXT = r".*language_model.*\.(q_proj|v_proj|o_proj|up_proj|down_proj)"
ASKED = ("text alone", "two images")


def tune(model: StillModel, path: Path, targets: str) -> Adapted:
    """Save an adapter that changes what is drawn of images, too."""
    adapter = adapt(model.oracle, path, seed=1, target_modules=targets)
    for name, value in adapter.oracle.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value.data, std=0.4)
    adapter.oracle.save_pretrained(path)
    return adapter


def rename(path: Path, old: str, new: str) -> None:
    """Have the adapter's tensors by the names of another day."""
    file = path / "adapter_model.safetensors"
    save_file({name.replace(old, new): x for name, x in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("family", "old"),
    [
        ("qwen2.5-vl", "model.layers."),
        ("llava-qwen2", "language_model.model.layers."),
        ("mistral3", "language_model.model.layers."),
    ],
)
def test_an_adapter_of_the_text_gives_peft_s_ids(family: str, old: str, tmp_path: Path) -> None:
    """By the names of its modules today, and by those of before."""
    model = MAKERS[family](tmp_path / "model")
    adapter = tune(model, tmp_path / "today", OF_TEXT)
    tuned = replace(model, oracle=adapter.oracle)
    want = [tuned.generate(*CASES[name], COUNT) for name in ASKED]
    assert want != [model.generate(*CASES[name], COUNT) for name in ASKED]
    adapter.oracle.save_pretrained(tmp_path / "before")
    rename(tmp_path / "before", "model.language_model.layers.", old)
    loras = {name: str(tmp_path / name) for name in ("today", "before")}
    with headstock.Engine(model=str(model.path), loras=loras, **SETTINGS) as engine:
        for lora in loras:
            got = [ask(engine, CASES[name], lora_name=lora)["output_ids"] for name in ASKED]
            assert got == want, lora


def test_an_adapter_of_the_encoder_is_refused_by_name(tmp_path: Path) -> None:
    """Features of images are kept by what they show, and are the same for everybody."""
    model = make_gemma3(tmp_path / "model")
    adapter = tune(model, tmp_path / "a", r".*\.q_proj")
    told = r"vision_tower.*\.q_proj, which is of an encoder and takes no adapters"
    with (
        headstock.Engine(model=str(model.path), max_loras=1, **SETTINGS) as engine,
        pytest.raises(RequestError, match=told),
    ):
        engine.load_lora_adapter("a", str(adapter.path))
