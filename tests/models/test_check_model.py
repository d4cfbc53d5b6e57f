"""`headstock check-model`: what would load, and who computes it, without a weight being read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from headstock.checkpoint.files import StoredTensor
from headstock.cli import main
from tests.models.conftest import Save
from tests.models.harness import load
from tests.models.test_pooled import encoder
from tests.models.test_sentence import backbone

REFERENCE = ("--backend", "reference", "--dtype", "float32")


def check(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> tuple[int, Any]:
    code = main(["check-model", str(path), "--json", *REFERENCE, *flags])
    return code, json.loads(capsys.readouterr().out)


def test_a_model_that_fits_is_said_to_be_served(
    save: Save, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save("qwen3_moe").path

    def never(*_: Any) -> Any:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(StoredTensor, "read_all", never)
    monkeypatch.setattr("headstock.graph.source.CheckpointSource.read", never)
    code, found = check(capsys, path)
    assert (code, found["problem"], found["is_fallback"]) == (0, "", False)
    assert found["architecture"] == "Qwen3MoeForCausalLM"
    assert {"attention", "experts", "linear", "route_topk"} <= {op["op"] for op in found["ops"]}
    assert {op["provider"] for op in found["ops"]} == {"reference"}


def test_products_are_chosen_for_what_they_would_be_kept_in(
    save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = check(capsys, save("llama").path, "--quantization", "int8")
    specs = [op["spec"] for op in found["ops"] if op["op"] == "linear"]
    assert specs
    assert all("int8-group" in spec for spec in specs)


def test_what_is_missing_and_what_is_not_known_are_named(
    save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("llama").path
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.mlp.up.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:3].copy()
    save_file(tensors, path / "model.safetensors")
    code, found = check(capsys, path)
    assert code == 1
    assert found["missing"] == ["model.layers.0.mlp.up_proj.weight"]
    assert found["unexpected"] == ["model.layers.0.mlp.up.weight"]
    assert found["misshapen"] == ["model.norm.weight is [3], not [64]"]
    assert found["problem"]


def test_an_option_that_is_not_computed_is_a_problem_with_its_key(
    save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("llama").path
    config = json.loads((path / "config.json").read_text()) | {"hidden_act": "gelu"}
    (path / "config.json").write_text(json.dumps(config))
    code, found = check(capsys, path)
    assert code == 1
    assert "hidden_act = 'gelu'" in found["problem"]


def test_people_see_who_serves_and_what_is_wrong(
    save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("llama").path
    assert main(["check-model", str(path), *REFERENCE]) == 0
    shown = capsys.readouterr().out
    assert "the class of LlamaForCausalLM in headstock" in shown
    assert shown.endswith("Would be served.\n")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["OtherForCausalLM"]}))
    assert main(["check-model", str(path), *REFERENCE]) == 1
    assert "Would not be served: The model's architecture is Other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("bert", "BertModel"),
        ("embedding-gemma", "Gemma3ForCausalLM"),
        ("gte-qwen2", "Qwen2ForCausalLM"),
        ("modernbert", "ModernBertModel"),
    ],
)
def test_models_that_were_saved_without_a_head_are_said_to_embed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, architecture: str
) -> None:
    """By the class that serves them, whose tensors have another prefix than the files'."""
    if family == "bert":
        encoder(family, "Model", tmp_path)
    else:
        backbone(family, tmp_path)
    code, found = check(capsys, tmp_path)
    assert (code, found["problem"], found["task"]) == (0, "", "embed")
    assert (found["architecture"], found["is_fallback"]) == (architecture, False)
    assert "pool_rows" in {op["op"] for op in found["ops"]}


def test_scales_of_the_cache_are_left_out_by_name(
    save: Save, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In a file whose weights are quantised or not; the log of a start says it, too."""
    saved = save("llama")
    name, old = "model.layers.0.self_attn.k_scale", "model.layers.1.self_attn.k_proj.output_scale"
    tensors = load_file(saved.path / "model.safetensors")
    more = {name: np.ones(1, np.float32), old: np.ones((), np.float32)}
    save_file(tensors | more, saved.path / "model.safetensors", {"format": "pt"})
    code, found = check(capsys, saved.path)
    assert (code, sorted(found["left_out"])) == (0, [name, old])
    main(["check-model", str(saved.path), *REFERENCE])
    shown = capsys.readouterr().out
    assert "left out, since pages in 8 bits have a scale of their own" in shown
    assert name in shown
    load(saved.path)
    assert "Scales of the KV cache are left out" in caplog.text
    assert name in caplog.text
