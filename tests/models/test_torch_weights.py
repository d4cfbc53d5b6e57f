"""Models whose weights are in files that torch wrote, as old checkpoints of the hub have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import headstock
from headstock.checkpoint.download import download
from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError
from tests.models.conftest import Save
from tests.models.harness import load
from tests.models.test_pooled import ENGINE, as_sentence_model, encoder, prompts

IDS = [5, 9, 1, 77, 31]
SAFE, TORCH = "model.safetensors", "pytorch_model.bin"


def split(path: Path, weights: dict[str, torch.Tensor], count: int) -> None:
    """Write weights as ``count`` files and their index."""
    names, places = list(weights), {}
    for number in range(count):
        file = f"pytorch_model-{number + 1:05}-of-{count:05}.bin"
        own = names[number::count]
        torch.save({name: weights[name] for name in own}, path / file)
        places |= dict.fromkeys(own, file)
    (path / f"{TORCH}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("count", [0, 3], ids=["one file", "three files"])
def test_a_decoder_has_the_logits_of_transformers(save: Save, count: int) -> None:
    saved = save("llama")
    weights = saved.oracle.state_dict()
    (saved.path / SAFE).unlink()
    if count:
        split(saved.path, weights, count)
    else:
        torch.save(weights, saved.path / TORCH)
    torch.testing.assert_close(
        load(saved.path).step(a=IDS), saved.logits(IDS), rtol=1e-4, atol=1e-4
    )


def test_an_encoder_has_the_vectors_of_transformers(tmp_path: Path) -> None:
    """As BGE-M3's repository is: no safetensors, and the numbers of positions among the weights."""
    path = tmp_path / "m"
    oracle = encoder("xlm-roberta", "Model", path, bos_token_id=0, eos_token_id=2)
    as_sentence_model(path, "cls_token")
    weights = load_file(path / SAFE) | {"embeddings.position_ids": torch.arange(9)[None]}
    torch.save(weights, path / TORCH)
    (path / SAFE).unlink()
    texts = [[0, *(max(token, 3) for token in ids), 2] for ids in prompts(5, 40)]
    with headstock.Engine(model=str(path), **ENGINE) as engine:
        found = torch.tensor([answer["embedding"] for answer in engine.embed(input_ids=texts)])
    with torch.no_grad():
        want = torch.stack([oracle(torch.tensor([i])).last_hidden_state[0, 0] for i in texts])
    want = torch.nn.functional.normalize(want, dim=-1)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_safetensors_win_where_a_folder_has_both(save: Save) -> None:
    saved = save("llama")
    (saved.path / TORCH).write_bytes(b"not read")
    assert open_folder(saved.path).index


def test_an_index_that_names_a_file_which_is_not_there_is_refused(save: Save) -> None:
    saved = save("llama")
    split(saved.path, saved.oracle.state_dict(), 2)
    (saved.path / SAFE).unlink()
    (saved.path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 2 weight files"):
        open_folder(saved.path)


@pytest.mark.parametrize("files", [[SAFE, TORCH], [TORCH]])
def test_weights_are_fetched_once_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    """Repositories with both kinds have the same weights twice."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    def snapshot_download(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        for name in filter_repo_objects([*files, "config.json"], allow_patterns=allow_patterns):
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    download("some/model", None)
    assert {file.name for file in tmp_path.iterdir()} == {files[0], "config.json"}
