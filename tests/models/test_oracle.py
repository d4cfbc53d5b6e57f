"""Shapes, shards and rotary scalings against transformers; the families are in test_families."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from headstock.testing.oracle.case import prompt
from headstock.testing.oracle.claims import assert_close
from tests.models.conftest import Save
from tests.models.harness import context, load

OPTIONS = [
    pytest.param({"tie_word_embeddings": True}, id="tied"),
    pytest.param({"num_key_value_heads": 4}, id="as-many-kv-heads"),
    pytest.param({"num_key_value_heads": 1}, id="one-kv-head"),
    pytest.param({"vocab_size": 131}, id="odd-vocabulary"),
    pytest.param({"head_dim": 20}, id="odd-head-size"),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_shapes_of_many_kinds_agree(save: Save, family: str, options: dict[str, object]) -> None:
    saved = save(family, **options)
    ids = prompt(11)
    assert_close(load(saved.path).step(a=ids), saved.logits(ids))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_attention_biases_count(save: Save, family: str) -> None:
    saved = save(family, attention_bias=True)
    ids = prompt(11)
    assert_close(load(saved.path).step(a=ids), saved.logits(ids))


def test_a_checkpoint_in_shards_loads(save: Save) -> None:
    saved = save("llama", shard_bytes="50KB")
    assert len(list(saved.path.glob("*.safetensors"))) > 2
    ids = prompt(11)
    assert_close(load(saved.path).step(a=ids), saved.logits(ids))


ROPES = [
    pytest.param({"rope_type": "linear", "factor": 3.0}, id="linear"),
    pytest.param(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        id="llama3",
    ),
    pytest.param(
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, id="yarn"
    ),
    pytest.param(
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "mscale": 0.7,
            "mscale_all_dim": 1.2,
            "truncate": False,
        },
        id="yarn-with-options",
    ),
]


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_rotary_frequencies_agree(save: Save, rope: dict[str, object]) -> None:
    saved = save("llama", rope_parameters={"rope_theta": 10000.0, **rope})
    ids = prompt(100)
    assert_close(load(saved.path).step(a=ids), saved.logits(ids))


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
@pytest.mark.parametrize("inside", [None, 16])
@pytest.mark.parametrize("beside", [None, 64])
def test_the_length_before_scaling_may_stand_beside_it(
    save: Save, kind: str, inside: int | None, beside: int | None
) -> None:
    saved = save("llama")
    scaling = {"rope_type": kind, "factor": 4.0}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if inside is not None:
        scaling["original_max_position_embeddings"] = inside
    file = saved.path / "config.json"
    config = json.loads(file.read_text()) | {"rope_theta": 10000.0, "rope_scaling": scaling}
    del config["rope_parameters"]
    if beside is not None:
        config["original_max_position_embeddings"] = beside
    file.write_text(json.dumps(config))
    oracle = transformers.LlamaForCausalLM.from_pretrained(saved.path).eval()
    ids = prompt(90)
    with torch.no_grad():
        want = oracle(torch.tensor([ids])).logits[0]
    assert_close(load(saved.path).step(a=ids), want)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_a_window_that_no_request_is_longer_than_has_no_pages_of_its_own(
    save: Save, family: str
) -> None:
    saved = save(family, sliding_window=40)
    ids = prompt(40)
    idle = load(saved.path, context(max_length=40))
    assert_close(idle.step(a=ids), saved.logits(ids))
    assert [kept.kind for kept in idle.ctx.groups] == ["full"]
    assert [kept.kind for kept in load(saved.path, context(max_length=41)).ctx.groups] == ["window"]
