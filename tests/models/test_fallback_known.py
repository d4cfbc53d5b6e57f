"""What of transformers' classes the fallback takes for its own layers, and what it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from headstock.ops.activation_kinds import GELU, RELU2, SILU
from headstock.testing.oracle.case import ModelCase, Saved
from headstock.testing.oracle.claims import CLAIMS
from headstock_models.fallback.known_parts import find_feed_forward, find_norm
from tests.models.test_fallback import case

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
WHOLE: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True, "mlp_bias": True},
    "Qwen3": {"head_dim": 16},
    "Glm": {"head_dim": 16, "pad_token_id": 0},
    "HunYuanDenseV1": {"head_dim": 16, "pad_token_id": 0},
}
"""Forced through the fallback: with biases, norms of heads on both sides of the rotation, pairs."""


def llama_config(**options: Any) -> Any:
    return transformers.LlamaConfig(**TINY, **options)


class ShiftedNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + 0.01


class EpsilonOutside(LlamaRMSNorm):
    """The same but for tokens that are nearly 0."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        root = hidden_states.square().mean(-1, keepdim=True).sqrt()
        return self.weight * hidden_states / (root + self.variance_epsilon)


class SwappedMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class ClampedMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(-0.3, 0.3))


def test_a_norm_is_known_by_what_it_computes() -> None:
    plain = find_norm(LlamaRMSNorm(16, eps=1e-5))
    assert plain is not None
    assert (plain.size, plain.eps, plain.is_zero_centered) == (16, 1e-5, False)
    centered = find_norm(transformers.models.gemma.modeling_gemma.GemmaRMSNorm(16))
    assert centered is not None
    assert centered.is_zero_centered
    assert find_norm(nn.LayerNorm(16)) is not None


@pytest.mark.parametrize("kind", [ShiftedNorm, EpsilonOutside])
def test_a_norm_that_computes_otherwise_is_left_alone(kind: Callable[..., nn.Module]) -> None:
    assert find_norm(kind(16, eps=1e-5)) is None


@pytest.mark.parametrize(("name", "activation"), [("silu", SILU), ("gelu", GELU), ("relu2", RELU2)])
def test_a_feed_forward_layer_is_known_with_its_activation(name: str, activation: Any) -> None:
    found = find_feed_forward(LlamaMLP(llama_config(hidden_act=name, mlp_bias=True)))
    assert found is not None
    assert (found.activation, found.has_bias) == (activation, True)
    assert (found.hidden_size, found.intermediate_size) == (16, 24)


@pytest.mark.parametrize("kind", [SwappedMLP, ClampedMLP])
def test_a_feed_forward_layer_that_computes_otherwise_is_left_alone(
    kind: Callable[..., nn.Module],
) -> None:
    assert find_feed_forward(kind(llama_config())) is None


def test_a_probe_leaves_the_module_and_the_generator_as_they_were() -> None:
    module, state = LlamaMLP(llama_config()), torch.get_rng_state()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    find_feed_forward(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.fixture(scope="module")
def forced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """Return what saves a family that has a file, to be served without it."""
    saved: dict[str, Saved] = {}

    def save(stem: str) -> Saved:
        if stem not in saved:
            folder = tmp_path_factory.mktemp("checkpoint")
            saved[stem] = case(stem, WHOLE[stem]).save(folder)
        return saved[stem]

    return save


@pytest.mark.parametrize("stem", WHOLE)
def test_a_known_decoder_calls_nothing_but_ops(forced: Callable[[str], Saved], stem: str) -> None:
    for claim in ("ops_and_views", "last_tokens", "mixed_batch"):
        CLAIMS[claim](forced(stem))


def test_what_stands_in_has_the_attributes_of_what_it_stands_for(
    forced: Callable[[str], Saved],
) -> None:
    layer = forced("Qwen3").load().model._decoder.layers[0]  # type: ignore[attr-defined]
    assert layer.self_attn.layer_idx == 0
    assert layer.mlp.intermediate_size == 96
    assert layer.input_layernorm.weight.shape == (64,)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = layer.mlp.nothing_of_the_kind


def test_layers_have_one_table_of_angles(forced: Callable[[str], Saved]) -> None:
    """A long model's is large: a copy a layer would not fit."""
    layers = forced("Qwen3").load().ctx.attention_layers
    assert len(layers) == 2
    assert len({id(layer._table_LC) for layer in layers}) == 1  # type: ignore[attr-defined]


def test_ranks_share_what_is_known(forced: Callable[[str], Saved]) -> None:
    CLAIMS["ranks"](forced("Qwen3"))


def granite(multipliers: dict[str, float]) -> ModelCase:
    return case("Granite", multipliers)


@pytest.mark.parametrize(
    "multipliers",
    [{"embedding_multiplier": 3.0}, {"residual_multiplier": 0.3}, {"logits_scaling": 4.0}],
)
def test_what_a_decoder_does_besides_is_still_done(
    tmp_path: Path, multipliers: dict[str, float]
) -> None:
    saved = granite(multipliers).save(tmp_path)
    for claim in ("prefill", "last_tokens"):
        CLAIMS[claim](saved)


def test_attention_that_scales_queries_by_hand_is_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    turn = modeling_llama.apply_rotary_pos_emb
    odd = lambda q, k, *rest, **options: (turn(q, k, *rest, **options)[0] * 2, functional.relu(k))  # noqa: E731
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", odd)
    saved = case("Llama", {}).save(tmp_path)
    CLAIMS["prefill"](saved)
