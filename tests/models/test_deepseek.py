"""DeepSeek's options, checkpoints in FP8, and what of its routing is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headstock.checkpoint.folder import open_folder
from headstock.errors import ConfigError, UnsupportedError
from headstock.graph.estimate import estimate_weight_bytes
from headstock.graph.loader import load_weights, weight_bytes
from headstock.graph.rotary import sharpening
from headstock.testing.oracle.ranks import ThreadGroup
from tests.models.conftest import Save
from tests.models.harness import Sequences, build, context, load
from tests.models.test_fp8_checkpoint import save_blocks
from tests.models.test_moe import dequantized
from tests.models.test_oracle import assert_close, prompt

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param("deepseek_v3", {"q_lora_rank": None}, id="queries-without-latent"),
        pytest.param("deepseek_v3", {"rope_interleave": False}, id="halves-as-pairs"),
        pytest.param("deepseek_v3", {"rope_parameters": YARN}, id="yarn"),
        pytest.param(
            "deepseek_v3", {"rope_parameters": YARN | {"mscale_all_dim": 0.7}}, id="yarn-mscale"
        ),
        pytest.param("deepseek_v3", {"n_group": 1, "topk_group": 1}, id="one-group"),
        pytest.param("deepseek_v3", {"norm_topk_prob": False}, id="weights-not-normalised"),
        pytest.param("deepseek_v3", {"first_k_dense_replace": 3}, id="dense-layers-only"),
        pytest.param("deepseek_v3", {"attention_bias": True}, id="biases"),
        pytest.param("deepseek_v3", {"tie_word_embeddings": True}, id="tied"),
        pytest.param("deepseek_v2", {"topk_method": "greedy"}, id="v2-greedy"),
        pytest.param("deepseek_v2", {"q_lora_rank": None}, id="v2-lite"),
    ],
)
def test_options_agree_with_transformers(
    save: Save, family: str, options: dict[str, object]
) -> None:
    saved = save(family, **options)
    ids = prompt(40)
    sequences = load(saved.path)
    got = [sequences.step(a=ids[:33]), *(sequences.step(a=[token]) for token in ids[33:])]
    assert_close(torch.cat(got), saved.logits(ids))


def test_the_hub_and_transformers_call_the_number_of_experts_alike_or_not(save: Save) -> None:
    files = open_folder(save("deepseek_v3").path)
    config = {name: value for name, value in files.config.items() if name != "n_routed_experts"}
    model = build(replace(files, config=config | {"num_local_experts": 16}), context())
    assert len(model.model.layers[1].mlp.bias.values_E) == 16


def test_an_fp8_checkpoint_has_the_logits_of_its_values(save: Save) -> None:
    saved = save(
        "deepseek_v3",
        hidden_size=128,
        intermediate_size=128,
        moe_intermediate_size=128,
        q_lora_rank=128,
        kv_lora_rank=128,
        v_head_dim=32,
        n_shared_experts=1,
    )
    save_blocks(saved)
    files = open_folder(saved.path)
    kept = files.index["model.layers.0.self_attn.kv_b_proj.weight"]
    assert kept.layout == "fp8-group"
    wanted_files = dequantized(files)

    def logits(from_files: object) -> torch.Tensor:
        ctx = context()
        model = build(from_files, ctx)
        load_weights(model, from_files, ctx)
        assert weight_bytes(model) == estimate_weight_bytes(model, from_files.index, ctx)
        return Sequences(model, ctx).step(a=prompt(9))

    assert_close(logits(files), logits(wanted_files))


def test_a_layer_that_drafts_is_left_out(save: Save) -> None:
    files = open_folder(save("deepseek_v3").path)
    norm = files.index["model.norm.weight"]
    for number, is_fine in ((3, True), (4, False)):
        name = f"model.layers.{number}.eh_proj.weight"
        index = files.index | {name: replace(norm, name=name)}
        ctx, changed = context(), replace(files, index=index)
        if is_fine:
            load_weights(build(changed, ctx), changed, ctx)
        else:
            with pytest.raises(Exception, match="eh_proj"):
                load_weights(build(changed, ctx), changed, ctx)


def test_heads_that_do_not_divide_are_refused(save: Save) -> None:
    saved = save("deepseek_v3", num_attention_heads=3, num_key_value_heads=3)
    group = ThreadGroup(0, 2, None, [])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tp_size is 2"):
        load(saved.path, context(tp=group))


@pytest.mark.parametrize(
    ("key", "value"),
    [("scoring_func", "sqrtsoftplus"), ("topk_method", "greedy"), ("moe_layer_freq", 2)],
)
def test_what_is_not_computed_is_refused_by_name(save: Save, key: str, value: object) -> None:
    files = open_folder(save("deepseek_v3").path)
    with pytest.raises(UnsupportedError, match=key):
        build(replace(files, config=files.config | {key: value}), context())


@pytest.mark.parametrize("options", [{"n_group": 5}, {"topk_group": 1, "num_experts_per_tok": 5}])
def test_groups_that_cannot_be_are_refused(save: Save, options: dict[str, object]) -> None:
    files = open_folder(save("deepseek_v3").path)
    with pytest.raises(UnsupportedError, match="16 experts in"):
        build(replace(files, config=files.config | options), context())


def test_scores_are_sharpened_only_where_the_configuration_says() -> None:
    assert sharpening({"rope_parameters": YARN}) == pytest.approx(1.2964, abs=1e-4)
    assert sharpening({"rope_scaling": {**YARN, "mscale_all_dim": 0}}) == 1.0
    assert sharpening({"rope_theta": 1e4}) == 1.0
