"""Architectures without a file of ours: transformers' classes around our attention and products."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, ConfigError, UnsupportedError
from headstock.graph.linear import Linear
from headstock.graph.module import find_layers
from headstock.graph.moe import Experts
from headstock.testing.oracle.case import SIZES, ModelCase, Saved, prompt
from headstock.testing.oracle.claims import CLAIMS
from headstock.testing.oracle.ranks import ThreadGroup
from headstock.testing.oracle.sequences import context
from headstock_models.fallback.model import TransformersForCausalLM
from tests.models.harness import REGISTRY, load

MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Arcee": {},
    "Phi": {"pad_token_id": 0},
    "Olmo": {"pad_token_id": 0},
    "Nemotron": {"pad_token_id": 0},
    "GraniteMoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "VaultGemma": {"head_dim": 16, "sliding_window": 7},
    "Mellum": MOE
    | {
        "num_experts": 8,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 7,
    },
}
GEMMA = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 7,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
}
"""Layers that take keys and values of others, and embeddings of their own in each layer."""
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "Gemma3n": GEMMA
    | {"intermediate_size": [96] * 4, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8},
    "Gemma4": GEMMA | {"global_head_dim": 32},
}
"""They have files by now; no architecture without one is like them."""
CONFIGS = {stem: f"{stem}TextConfig" for stem in ("Gemma3n", "Gemma4", "Llama4")}
"""Of configurations that are not named as the class."""
MORE: Mapping[str, Mapping[str, Any]] = {
    "Cwm": {"sliding_window": 7, "pad_token_id": 0},
    "Gemma": {"head_dim": 16},
    "Helium": {"head_dim": 16, "pad_token_id": 0},
    "NanoChat": {},
    "Youtu": {
        "q_lora_rank": 40,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 16,
        "v_head_dim": 20,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
    },
}
TRIED = (
    "prefill",
    "decoding",
    "chunks",
    "mixed_batch",
    "cache_hit",
    "retraction",
    "last_tokens",
    "ranks",
)


def case(stem: str, options: Mapping[str, Any]) -> ModelCase:
    return ModelCase(
        name=stem.lower(),
        model=TransformersForCausalLM,
        config=getattr(transformers, CONFIGS.get(stem, f"{stem}Config")),
        oracle=getattr(transformers, f"{stem}ForCausalLM"),
        options=options,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what saves a family once for all claims."""
    saved: dict[str, Saved] = {}

    def save(stem: str) -> Saved:
        if stem not in saved:
            options = (FAMILIES | MORE | KNOWN).get(stem, {})
            saved[stem] = case(stem, options).save(tmp_path_factory.mktemp("checkpoint"))
        return saved[stem]

    return save


def test_eight_architectures_or_more_are_tried_and_none_has_a_file() -> None:
    tried = {f"{stem}ForCausalLM" for stem in (*FAMILIES, *MORE)}
    assert len(tried) >= 8
    assert not tried & set(REGISTRY.names)


@pytest.mark.parametrize("claim", TRIED)
@pytest.mark.parametrize("stem", FAMILIES)
def test_families_without_a_file_have_the_logits_of_transformers(
    kept: Any, stem: str, claim: str
) -> None:
    CLAIMS[claim](kept(stem))


@pytest.mark.slow
@pytest.mark.parametrize("claim", TRIED)
@pytest.mark.parametrize("stem", [*MORE, *KNOWN])
def test_more_families_without_a_file_have_the_logits_of_transformers(
    kept: Any, stem: str, claim: str
) -> None:
    CLAIMS[claim](kept(stem))


def test_gpt2_loads_by_the_names_that_the_hub_has(tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 128}
    gpt2 = ModelCase(
        name="gpt2",
        model=TransformersForCausalLM,
        config=transformers.GPT2Config,
        oracle=transformers.GPT2LMHeadModel,
        sizes=sizes,
    )
    saved = gpt2.save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)  # a mask that old files have
    save_file(tensors, file)
    for claim in ("prefill", "decoding", "cache_hit"):
        CLAIMS[claim](saved)


def test_products_and_experts_are_quantised_by_their_role(kept: Any) -> None:
    saved = kept("Mellum")
    ids = prompt(9)
    sequences = load(saved.folder, context(quantization="int8"))
    want = saved.logits(ids)
    assert 0 < (sequences.step(a=ids) - want).norm() / want.norm() < 0.1
    kinds = {type(layer) for _, layer in find_layers(sequences.model)}
    assert {Linear, Experts} <= kinds


def test_random_weights_fill_every_layer(kept: Any) -> None:
    CLAIMS["random_weights"](kept("Mellum"))


def test_in_bfloat16_the_angles_stay_exact(kept: Any) -> None:
    sequences = load(kept("Arcee").folder, context(dtype=torch.bfloat16))
    rotary = sequences.model._decoder.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
    assert sequences.step(a=prompt(9)).isfinite().all()


@pytest.mark.parametrize(
    ("stem", "options", "reason"),
    [
        ("Mamba", {}, "computes attention by itself"),
        ("Bloom", {}, "computes attention by itself"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "layer_types has"),
        ("RecurrentGemma", {"block_types": ["attention"]}, "states of their own"),
        (
            "DeepseekV4",
            {},
            "states of their own .heavily_compressed_attention., not keys and values alone",
        ),
    ],
)
def test_what_pages_cannot_hold_is_refused_with_its_reason(
    stem: str, options: Mapping[str, Any], reason: str
) -> None:
    config = getattr(transformers, f"{stem}Config")(**{**SIZES, **options}).to_dict()
    config["architectures"] = [f"{stem}ForCausalLM"]
    with pytest.raises(UnsupportedError, match=reason):
        TransformersForCausalLM(context(), config)


def test_angles_that_change_with_the_length_are_refused(kept: Any) -> None:
    config = kept("Arcee").config()
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(UnsupportedError, match="rope_type = 'dynamic'"):
        TransformersForCausalLM(context(), config)


def test_what_transformers_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="NoSuchForCausalLM: no installed package"):
        TransformersForCausalLM(context(), {"architectures": ["NoSuchForCausalLM"]})


def test_a_configuration_that_transformers_refuses_is_said_to_be_so(kept: Any) -> None:
    config = kept("Arcee").config() | {"hidden_size": "wide"}
    with pytest.raises(CheckpointError, match="transformers"):
        TransformersForCausalLM(context(), config)


def test_ranks_need_a_plan_that_is_followed() -> None:
    config = transformers.PersimmonConfig(**case("Persimmon", {}).sizes).to_dict()
    config["architectures"] = ["PersimmonForCausalLM"]
    group = ThreadGroup(0, 2, None, [])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tp_size is 2, and the model is served by transformers"):
        TransformersForCausalLM(context(tp=group), config)


def test_a_missing_tensor_is_named(kept: Any, tmp_path: Path) -> None:
    files = open_folder(kept("Olmo").folder)
    files.index.pop("model.layers.1.mlp.up_proj.weight")
    from headstock.graph.loader import load_weights

    ctx = context()
    model = TransformersForCausalLM(ctx, json.loads(json.dumps(files.config)))
    files.rename(model.named)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_weights(model, files, ctx)
