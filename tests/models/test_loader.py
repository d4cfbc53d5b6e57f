"""What the loader refuses, tells and keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.config import ModelConfig, read_config
from headstock.graph.estimate import estimate_weight_bytes
from headstock.graph.loader import (
    compare,
    expected_leaves,
    load_random,
    load_weights,
    reload_weights,
    weight_bytes,
)
from headstock.graph.source import RandomSource
from headstock.quantization.plan import Role
from tests.models.conftest import Save, Saved
from tests.models.harness import Sequences, build, context, load

IDS = [5, 9, 1, 77, 31]
WEIGHTS = "model.safetensors"


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def edit_weights(path: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(path / WEIGHTS) | changes
    save_file({n: t for n, t in weights.items() if t is not None}, path / WEIGHTS)


def test_missing_tensors_are_listed(save: Save) -> None:
    path = save("llama").path
    edit_weights(path, **{"model.norm.weight": None, "lm_head.weight": None})
    files = open_folder(path)
    assert compare(build(files, context()), files.index).missing == [
        "model.norm.weight",
        "lm_head.weight",
    ]
    with pytest.raises(CheckpointError, match=r"2 missing: model.norm.weight, lm_head.weight"):
        load(path)


def test_unexpected_tensors_are_refused_not_ignored(save: Save) -> None:
    path = save("llama").path
    edit_weights(path, **{"model.layers.1.extra.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: model.layers.1.extra.weight"):
        load(path)


def test_a_tensor_of_another_shape_is_refused(save: Save) -> None:
    path = save("llama").path
    edit_weights(path, **{"model.norm.weight": torch.ones(65)})
    with pytest.raises(CheckpointError, match=r"model.norm.weight is \[65\], not \[64\]"):
        load(path)


def test_tensors_that_a_row_excuses_are_skipped(save: Save) -> None:
    path = save("llama").path
    edit_weights(path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(path)


def test_a_tied_model_may_bring_its_output_layer(save: Save) -> None:
    saved = save("llama", tie_word_embeddings=True)
    embedding = load_file(saved.path / WEIGHTS)["model.embed_tokens.weight"]
    edit_weights(saved.path, **{"lm_head.weight": embedding.clone()})
    loaded = load(saved.path)
    torch.testing.assert_close(loaded.step(a=IDS), saved.logits(IDS))
    assert loaded.model.lm_head.tied is not None


def test_an_output_layer_unlike_the_embedding_is_used_with_a_warning(
    save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    saved = save("llama", tie_word_embeddings=True)
    edit_weights(saved.path, **{"lm_head.weight": torch.randn(128, 64)})
    oracle = LlamaForCausalLM.from_pretrained(saved.path).eval()
    with torch.no_grad():
        want = oracle(torch.tensor([IDS])).logits[0]
    assert not torch.allclose(want, saved.logits(IDS), atol=0.1)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert "ties lm_head.weight to model.embed_tokens.weight" in caplog.text
    # One number of the last row is enough.
    edit_weights(
        saved.path, **{"lm_head.weight": (edited := oracle.model.embed_tokens.weight.data.clone())}
    )
    edited[-1, -1] += 1
    edit_weights(saved.path, **{"lm_head.weight": edited})
    assert load(saved.path).model.lm_head.tied is None


def test_the_index_decides_what_the_shards_hold(save: Save) -> None:
    saved = save("llama", shard_bytes="50KB")
    index = json.loads((saved.path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    name = "model.layers.0.mlp.up_proj.weight"
    other = next(shard for shard in shards if shard != index["weight_map"][name])
    tensors = load_file(saved.path / other)
    tensors |= {"model.unused.weight": torch.ones(3), name: torch.zeros(96, 64)}
    save_file(tensors, saved.path / other, metadata={"format": "pt"})
    torch.testing.assert_close(
        load(saved.path).step(a=IDS), saved.logits(IDS), rtol=1e-4, atol=1e-4
    )


def test_an_index_that_names_what_a_shard_lacks_is_refused(save: Save) -> None:
    saved = save("llama", shard_bytes="50KB")
    file = saved.path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.gone.weight"] = min(index["weight_map"].values())
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"gives model.gone.weight to .*, which lacks it"):
        open_folder(saved.path)


def test_progress_ends_at_the_bytes_of_the_checkpoint(save: Save) -> None:
    files = open_folder(save("llama").path)
    ctx, told = context(), []
    load_weights(build(files, ctx), files, ctx, lambda done, total: told.append((done, total)))
    assert told[-1] == (files.num_bytes, files.num_bytes)
    assert told == sorted(told)


def test_loading_again_changes_the_weights_in_place(save: Save) -> None:
    saved = save("llama")
    sequences = load(saved.path)
    weights = load_file(saved.path / WEIGHTS)
    save_file({name: tensor * 2 for name, tensor in weights.items()}, saved.path / WEIGHTS)
    files = open_folder(saved.path)
    reload_weights(sequences.model, files.tensors(), files.num_bytes)
    torch.testing.assert_close(sequences.step(a=IDS), load(saved.path).step(a=IDS))


def test_random_weights_are_the_same_on_every_start(save: Save) -> None:
    files = open_folder(save("qwen3").path, needs_weights=False)
    logits = []
    for _ in range(2):
        ctx = context()
        model = build(files, ctx)
        load_random(model, ctx)
        logits.append(Sequences(model, ctx).step(a=IDS))
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])


def test_random_rows_are_the_same_in_one_piece_and_in_two() -> None:
    rows, shape = 6, (6, 8)
    host = torch.device("cpu")
    for role in (Role.MATRIX, Role.SCALE, Role.BIAS):
        whole = RandomSource("a", shape, role, host, torch.float32).read(0, rows)["weight"]
        source = RandomSource("a", shape, role, host, torch.float32)
        halves = [source.read(*each)["weight"] for each in ((0, 3), (3, rows))]
        assert torch.equal(torch.cat(halves), whole)


def test_random_weights_need_no_weight_files(save: Save) -> None:
    path = save("llama").path
    (path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="load-format dummy"):
        open_folder(path)
    assert open_folder(path, needs_weights=False).index == {}


def test_weights_are_kept_once(save: Save) -> None:
    files = open_folder(save("llama", tie_word_embeddings=True).path)
    ctx = context()
    model = build(files, ctx)
    load_weights(model, files, ctx)
    assert weight_bytes(model) == files.num_bytes


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_weights_take_the_bytes_that_were_estimated(save: Save, quantization: str | None) -> None:
    files = open_folder(save("qwen3").path)
    ctx = context(quantization=quantization)
    model = build(files, ctx)
    estimate = estimate_weight_bytes(model, files.index, ctx)
    load_weights(model, files, ctx)
    assert weight_bytes(model) == estimate


def test_bfloat16_checkpoints_load(save: Save) -> None:
    saved = save("llama")
    saved.oracle.to(torch.bfloat16).save_pretrained(saved.path)
    assert open_folder(saved.path).dtype == "bfloat16"
    oracle = LlamaForCausalLM.from_pretrained(saved.path, dtype=torch.float32)
    torch.testing.assert_close(load(saved.path).step(a=IDS), Saved(saved.path, oracle).logits(IDS))


def test_logits_are_float32_whatever_the_dtype(save: Save) -> None:
    sequences = load(save("llama").path, context(dtype=torch.bfloat16))
    assert sequences.step(a=IDS).dtype == torch.float32


def test_the_old_keys_of_rotary_parameters_are_read(save: Save) -> None:
    saved = save(
        "llama", rope_parameters={"rope_theta": 5000.0, "rope_type": "linear", "factor": 2}
    )
    scaling = {"type": "linear", "factor": 2.0}
    edit_config(saved.path, rope_parameters="absent", rope_theta=5000.0, rope_scaling=scaling)
    torch.testing.assert_close(load(saved.path).step(a=IDS), saved.logits(IDS))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"sliding_window": 64}),
        ("qwen3", {"layer_types": ["full_attention", "chunked_attention"]}),
        ("qwen3_moe", {"use_sliding_window": True}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("llama", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": "x"}}),
    ],
)
def test_a_configuration_that_we_do_not_compute_is_refused(
    save: Save, family: str, changes: dict[str, object]
) -> None:
    path = save(family).path
    edit_config(path, **changes)
    with pytest.raises(UnsupportedError):
        load(path)


@pytest.mark.parametrize("changes", [{"hidden_size": "absent"}, {"num_hidden_layers": "two"}])
def test_a_configuration_that_is_wrong_names_the_key(
    save: Save, changes: dict[str, object]
) -> None:
    path = save("llama").path
    edit_config(path, **changes)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        load(path)


def test_leaves_have_the_names_of_transformers(save: Save) -> None:
    saved = save("qwen3")
    files = open_folder(saved.path)
    names = set(expected_leaves(build(files, context())))
    assert names == set(saved.oracle.state_dict())


class Windowed(ModelConfig, frozen=True, kw_only=True):
    cap: float | None = 50.0
    size: int = 7


def test_null_is_kept_where_it_can_mean_off() -> None:
    read = read_config(Windowed, {"cap": None, "size": None})
    assert (read.cap, read.size) == (None, 7)
    assert read_config(Windowed, {}).cap == 50.0
