"""Embedding models as sentence-transformers saves them, against that library on the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

import headstock
from headstock.errors import UnsupportedError
from headstock.testing.oracle.case import SIZES, randomize
from tests.models.test_pooled import ENGINE, assert_vector, prompts, write_tokenizer

TEXTS = ["a b c d e f g", "h", "i j k l m n o p q r s t u v w x y z a b c d e f g h i j", "b a"]
SETTINGS = {"backend": "reference", "dtype": "float32", "page_size": 4, "max_running_requests": 4}
NEAR = {"sliding_window": 6, "head_dim": 32, "query_pre_attn_scalar": 20}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
SQUASH, KEEP = torch.nn.Tanh(), torch.nn.Identity()
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "embedding-gemma": (
        "Gemma3Text",
        {
            **NEAR,
            "num_hidden_layers": 3,
            "layer_types": KINDS,
            "use_bidirectional_attention": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "gte-qwen2": ("Qwen2", {"is_causal": False}),
    "gte-qwen2 with windows": (
        "Qwen2",
        {
            "is_causal": False,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
        },
    ),
    "llama both ways": ("Llama", {"is_causal": False}),
    "modernbert": (
        "ModernBert",
        {
            "num_hidden_layers": 4,
            "local_attention": 6,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
        },
    ),
}
POOLING = {
    "embedding-gemma": "mean",
    "modernbert": "cls",
}
"""How the real ones are pooled; the others by their last token."""


def backbone(name: str, path: Path, **more: object) -> transformers.PreTrainedModel:
    """Save a small model of random weights without a head; return it."""
    stem, given = MODELS[name]
    sizes = {**SIZES, **given, **more}
    config = getattr(transformers, f"{stem}Config")(**sizes, attn_implementation="eager")
    torch.manual_seed(0)
    oracle = getattr(transformers, f"{stem}Model")(config).eval()
    randomize(oracle)
    oracle.save_pretrained(path)
    write_tokenizer(path)
    return oracle


def sentence_model(
    name: str, path: Path, *after: torch.nn.Module, mode: str = "", **more: object
) -> sentence_transformers.SentenceTransformer:
    """Save a model with what follows pooling, as the library does; return it."""
    oracle = backbone(name, path / "plain", **more)
    pooling = Pooling(oracle.config.hidden_size, mode or POOLING.get(name, "lasttoken"))
    modules = [Transformer(str(path / "plain")), pooling, *after]
    made = sentence_transformers.SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts={"query": "q q ", "document": "d "},
    )
    made.save_pretrained(str(path / "saved"))
    return made.eval()


def assert_same(
    path: Path, oracle: sentence_transformers.SentenceTransformer, texts: list[str], **options: Any
) -> None:
    with headstock.Engine(model=str(path), **SETTINGS) as engine:
        for _ in range(2):
            answers = engine.embed(texts, **options)
            for answer, want in zip(answers, oracle.encode(texts), strict=True):
                assert_vector(answer["embedding"], torch.tensor(want))


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    """Decoders go both ways where their configuration says so, over windows in some layers."""
    oracle = sentence_model(name, tmp_path, Normalize())
    assert_same(tmp_path / "saved", oracle, TEXTS)


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("name", ["modernbert", "gte-qwen2", "embedding-gemma"])
def test_hidden_states_are_pooled_as_the_folder_says(tmp_path: Path, name: str, mode: str) -> None:
    assert_same(tmp_path / "saved", sentence_model(name, tmp_path, mode=mode), TEXTS)


@pytest.mark.parametrize("name", ["embedding-gemma", "qwen3"])
def test_vectors_go_through_dense_layers(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    dense = [Dense(64, 96, bias=False, activation_function=KEEP), Dense(96, 48), Normalize()]
    oracle = sentence_model(name, tmp_path, *dense)
    assert_same(tmp_path / "saved", oracle, TEXTS)
    with headstock.Engine(model=str(tmp_path / "saved"), **SETTINGS) as engine:
        assert engine.card.embedding_size == 48
        (cut,) = engine.embed(["a b c"], dimensions=24)
        assert_vector(
            cut["embedding"],
            torch.tensor(oracle.encode("a b c", truncate_dim=24, normalize_embeddings=True)),
        )


def test_a_dense_layer_without_normalising_is_the_last(tmp_path: Path) -> None:
    oracle = sentence_model("qwen3", tmp_path, Dense(64, 32, activation_function=SQUASH))
    assert_same(tmp_path / "saved", oracle, TEXTS)


def test_prompts_go_before_texts_by_their_names(tmp_path: Path) -> None:
    oracle = sentence_model("qwen3", tmp_path, Normalize())
    with headstock.Engine(model=str(tmp_path / "saved"), **SETTINGS) as engine:
        assert engine.card.prompts == {"query": "q q ", "document": "d "}
        got = engine.embed(["q q a b"])[0]["embedding"]
    assert_vector(got, torch.tensor(oracle.encode("a b", prompt_name="query")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation_function": "torch.nn.modules.activation.GELU"}, "GELU"),
        ({"use_residual": True}, "use_residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
    ],
)
def test_dense_layers_that_are_not_computed_are_refused_by_name(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    sentence_model("qwen3", tmp_path, Dense(64, 32))
    file = tmp_path / "saved" / "2_Dense" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UnsupportedError, match=named):
        headstock.Engine(model=str(tmp_path / "saved"), **SETTINGS)


def test_dense_layers_behind_normalising_are_refused(tmp_path: Path) -> None:
    sentence_model("qwen3", tmp_path, Normalize(), Dense(64, 32))
    with pytest.raises(UnsupportedError, match="in this order"):
        headstock.Engine(model=str(tmp_path / "saved"), **SETTINGS)


def test_dense_weights_that_torch_wrote_are_read(tmp_path: Path) -> None:
    oracle = sentence_model("qwen3", tmp_path, Dense(64, 32))
    folder = tmp_path / "saved" / "2_Dense"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same(tmp_path / "saved", oracle, TEXTS)


def test_a_model_that_sees_both_ways_generates_nothing(tmp_path: Path) -> None:
    backbone("gte-qwen2", tmp_path / "m")
    with pytest.raises(UnsupportedError, match="is_causal false"):
        headstock.Engine(model=str(tmp_path / "m"), task="generate", **ENGINE)


def test_states_cannot_go_both_ways(save: Any) -> None:
    path = save("qwen3_next").path
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    with pytest.raises(UnsupportedError, match="states"):
        headstock.Engine(model=str(path), task="embed", **ENGINE)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_scores_of_modernbert_are_those_of_transformers(
    tmp_path: Path, num_labels: int, pooling: str, activation: str
) -> None:
    config = transformers.ModernBertConfig(
        **SIZES | MODELS["modernbert"][1],
        num_labels=num_labels,
        classifier_pooling=pooling,
        classifier_activation=activation,
        classifier_bias=num_labels > 1,
        norm_bias=num_labels > 1,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    oracle = transformers.ModernBertForSequenceClassification(config).eval()
    randomize(oracle)
    oracle.save_pretrained(tmp_path)
    texts = prompts(5, 1, 40, 16)
    with headstock.Engine(model=str(tmp_path), **ENGINE, page_size=4) as engine:
        for answer, ids in zip(engine.embed(input_ids=texts), texts, strict=True):
            with torch.no_grad():
                want = oracle(torch.tensor([ids])).logits[0].numpy()
            np.testing.assert_allclose(
                answer["embedding"], want, rtol=1e-4, atol=1e-4 * np.abs(want).max()
            )


def test_older_configurations_of_modernbert_are_read(tmp_path: Path) -> None:
    """As on the hub: a period of full layers, and a rotary base for each kind."""
    oracle = backbone("modernbert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("layer_types", "rope_parameters"):
        del config[key]
    old = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0}
    (tmp_path / "config.json").write_text(json.dumps(config | old | {"local_rope_theta": 10000.0}))
    (ids,) = prompts(30)
    with headstock.Engine(model=str(tmp_path), pooling="mean", **ENGINE) as engine:
        with torch.no_grad():
            want = oracle(torch.tensor([ids])).last_hidden_state[0].mean(0)
        got = engine.embed(input_ids=ids)["embedding"]
    assert_vector(got, torch.nn.functional.normalize(want, dim=0))
