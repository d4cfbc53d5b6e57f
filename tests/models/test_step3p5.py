"""Step 3.5: bases of angles by layer are read where a family has them, and refused elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, UnsupportedError
from tests.models.conftest import Save
from tests.models.harness import load


def set_theta(folder: Path, theta: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": theta}))


def test_bases_by_layer_are_refused_of_a_family_with_one_table(save: Save) -> None:
    saved = save("llama")
    set_theta(saved.path, [500.0, 100.0])
    with pytest.raises(UnsupportedError, match="rotary parameters differ from layer to layer"):
        load(saved.path)


@pytest.mark.parametrize("theta", [[500.0, 0.0], ["500"], []])
def test_a_base_that_no_model_has_is_found_in_a_list(save: Save, theta: object) -> None:
    saved = save("llama")
    set_theta(saved.path, theta)
    with pytest.raises(CheckpointError, match=r"rope_theta = .* allowed is a number over"):
        open_folder(saved.path)
