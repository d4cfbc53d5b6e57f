"""Kimi K2.5: what its nested configuration may not say, nor its files hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.build import build_model
from headstock.graph.loader import load_weights
from headstock.testing.oracle.sequences import context
from tests.models.cases import CASES

CASE = next(case for case in CASES if case.name == "kimik25")


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "llama"), ("scoring_func", "softmax"), ("hidden_act", "gelu")],
)
def test_what_the_text_asks_beyond_is_refused_by_key_and_value(
    tmp_path: Path, key: str, value: str
) -> None:
    config: dict[str, Any] = CASE.save(tmp_path).config()
    config["text_config"][key] = value
    with pytest.raises(UnsupportedError, match=f"{key} = '{value}'"):
        build_model(CASE.model, context(), config)


def test_tensors_that_no_layer_reads_are_refused(tmp_path: Path) -> None:
    CASE.save(tmp_path)
    files, ctx = open_folder(tmp_path), context()
    model = build_model(CASE.model, ctx, files.config)
    files.rename(model.named)
    load_weights(model, files, ctx)
    for name in ("model.language_model.more.weight", "model.vision_tower.more.weight"):
        files.index[name] = files.index["lm_head.weight"]
        with pytest.raises(CheckpointError, match=rf"1 unexpected: {re.escape(name)}"):
            load_weights(model, files, ctx)
        del files.index[name]
