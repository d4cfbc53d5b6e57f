"""Other weights in the places of a model's: what is computed after that, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstock.assemble.weights import InPlaceWeights
from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError
from headstock.graph.kept import kept_of
from tests.models.conftest import FAMILIES, Save
from tests.models.harness import Sequences, load

IDS = list(range(3, 30))
WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, Tensor]], object]


def in_place(sequences: Sequences, path: Path) -> InPlaceWeights:
    files = open_folder(path)
    files.rename(sequences.model.named)
    kept = kept_of(sequences.model, files.index)
    return InPlaceWeights(
        lambda: None, sequences.model, files.config, kept, lambda p: open_folder(Path(p))
    )


def another(path: Path, to: Path, change: Change = lambda _: None) -> Path:
    """Write a checkpoint like that of ``path`` with other values, and return its folder."""
    to.mkdir()
    (to / "config.json").write_bytes((path / "config.json").read_bytes())
    tensors = {name: tensor * 0.5 for name, tensor in load_file(path / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, to / WEIGHTS, {"format": "pt"})
    return to


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_other_weights_is_as_one_that_began_with_them(
    save: Save, tmp_path: Path, family: str
) -> None:
    saved = save(family)
    other = another(saved.path, tmp_path / "other")
    sequences = load(saved.path)
    before = sequences.step(a=IDS)
    weights = in_place(sequences, saved.path)
    weights.begin(str(other))
    while not weights.advance(0.0):
        pass
    want = load(other).step(b=IDS)
    got = sequences.step(b=IDS)
    assert torch.equal(got, want)
    assert not torch.allclose(got, before, atol=1e-3)


def dropped(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"]


def added(tensors: dict[str, Tensor]) -> None:
    tensors["model.more.weight"] = torch.ones(3)


def reshaped(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dropped, "1 missing: model.norm.weight"),
        (added, "1 unexpected: model.more.weight"),
        (reshaped, r"of another shape: model.norm.weight is \[3\]"),
    ],
)
def test_other_tensors_are_refused_and_the_old_ones_stay(
    save: Save, tmp_path: Path, change: Change, said: str
) -> None:
    saved = save("llama")
    sequences = load(saved.path)
    want = sequences.step(a=IDS)
    weights = in_place(sequences, saved.path)
    with pytest.raises(CheckpointError, match=said):
        weights.begin(str(another(saved.path, tmp_path / "other", change)))
    assert torch.equal(sequences.step(b=IDS), want)


def test_another_configuration_is_refused_by_its_key(save: Save, tmp_path: Path) -> None:
    saved = save("llama")
    other = another(saved.path, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"rms_norm_eps": 0.5, "dtype": "float16"})
    )
    with pytest.raises(CheckpointError, match=r"another model: rms_norm_eps is 0.5 there"):
        in_place(load(saved.path), saved.path).begin(str(other))


def test_a_head_of_its_own_is_refused_where_the_model_has_the_embedding_for_it(
    save: Save, tmp_path: Path
) -> None:
    saved = save("llama", tie_word_embeddings=True)

    def untied(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    weights = in_place(load(saved.path), saved.path)
    with pytest.raises(CheckpointError, match=r"has a lm_head.weight of its own"):
        weights.begin(str(another(saved.path, tmp_path / "other", untied)))


def test_what_is_not_there_is_refused(save: Save) -> None:
    saved = save("llama")
    with pytest.raises(CheckpointError, match="model_path is '/none', which does not exist"):
        in_place(load(saved.path), saved.path).begin("/none")
