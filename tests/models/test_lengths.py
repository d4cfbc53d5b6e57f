"""Where a model's length is looked for, and what is checked before the rest is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headstock.assemble.backend import open_backend
from headstock.assemble.model import plan_model
from headstock.assemble.model_files import UNBOUNDED, length_bound, max_length
from headstock.assemble.plan import make_plan
from headstock.checkpoint import resolve
from headstock.config import EngineSettings, Loaded, ModelSettings
from headstock.config.schema import DeviceSettings
from headstock.errors import CheckpointError, ConfigError, UnsupportedError
from headstock.plugins.models import ModelRegistry
from headstock_models.llama import LlamaForCausalLM

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}


class Elsewhere(LlamaForCausalLM):
    length_keys = ("n_positions", "max_seq_len")


def settings(folder: Path) -> Loaded[EngineSettings]:
    model = ModelSettings(model=str(folder), load_format="dummy")
    return Loaded(EngineSettings(model=model, device=DeviceSettings(backend="reference")), {})


def written(folder: Path, **changes: Any) -> Path:
    config = {k: v for k, v in (CONFIG | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_class_says_where_its_length_stands(tmp_path: Path) -> None:
    folder = written(tmp_path, max_position_embeddings=None, n_positions=96, max_seq_len=12)
    files = resolve(str(folder), needs_weights=False)
    registry = ModelRegistry((), {"LlamaForCausalLM": Elsewhere})
    opened = open_backend(settings(folder))
    try:
        assert plan_model(opened, files, registry=registry).options.max_length == 96
        with pytest.raises(ConfigError, match="does not say how long"):
            plan_model(opened, files)
    finally:
        opened.device.close()
    wanted = ModelSettings(model=str(folder), max_model_len=97)
    with pytest.raises(ConfigError, match="97"):
        max_length(files, wanted, Elsewhere.length_keys)
    # Without the class nothing is known, and nothing is refused: the engine's bound counts.
    assert length_bound(files, ModelSettings(model=str(folder))) == UNBOUNDED
    assert length_bound(files, wanted) == 97


def test_an_unknown_architecture_is_said_before_anything_else(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        architectures=["NoSuchForConditionalGeneration"],
        vocab_size=None,
        max_position_embeddings=None,
        text_config={"vocab_size": 64},
    )
    with pytest.raises(UnsupportedError, match="NoSuchForConditionalGeneration"):
        make_plan(settings(folder))


def test_a_configuration_without_a_vocabulary_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vocab_size None"):
        make_plan(settings(written(tmp_path, vocab_size=None)))
