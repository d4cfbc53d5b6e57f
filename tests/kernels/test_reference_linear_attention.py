"""The reference of linear attention against transformers' own functions."""

from __future__ import annotations

import pytest
import torch
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from headstock.ops.linear_attention_reference import gated_delta
from headstock.ops.states_reference import causal_conv


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 100])
def test_decays_by_channel_are_those_of_transformers(num_tokens: int) -> None:
    q, k = (drawn(2, num_tokens, 3, 16, seed=i) for i in (0, 1))
    v, state = drawn(2, num_tokens, 3, 24, seed=2), drawn(2, 3, 16, 24, seed=3)
    g, beta = -drawn(2, num_tokens, 3, 16, seed=4).exp(), drawn(2, num_tokens, 3, seed=5).sigmoid()
    wanted, after = kimi.recurrent_kimi_delta_attention(
        q, k, v, g, beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    unit_q, unit_k = (qwen.l2norm(x).transpose(1, 2) for x in (q, k))
    gates = g.transpose(1, 2), beta.transpose(1, 2)
    got, left = gated_delta(unit_q * 16**-0.5, unit_k, v.transpose(1, 2), *gates, state)
    torch.testing.assert_close(got.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 200])
def test_the_delta_rule_is_that_of_transformers(num_tokens: int) -> None:
    q, k = (drawn(2, num_tokens, 3, 16, seed=i) for i in (0, 1))
    v, state = drawn(2, num_tokens, 3, 24, seed=2), drawn(2, 3, 16, 24, seed=3)
    g, beta = -drawn(2, num_tokens, 3, seed=4).exp(), drawn(2, num_tokens, 3, seed=5).sigmoid()
    wanted, after = qwen.torch_recurrent_gated_delta_rule(
        q, k, v, g, beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    unit_q, unit_k = (qwen.l2norm(x).transpose(1, 2) for x in (q, k))
    gates = g.unsqueeze(3).transpose(1, 2), beta.transpose(1, 2)
    got, left = gated_delta(unit_q * 16**-0.5, unit_k, v.transpose(1, 2), *gates, state)
    torch.testing.assert_close(got.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 2, 3, 9])
def test_the_convolution_is_that_of_transformers_wherever_it_is_cut(cut: int) -> None:
    x_RNC, weight_CW = drawn(2, 10, 6, seed=0), drawn(6, 4, seed=1)
    wanted = qwen.causal_conv1d_fn(x_RNC.transpose(1, 2), weight_CW, activation="silu")
    first, state = causal_conv(x_RNC[:, :cut], weight_CW, torch.zeros(2, 3, 6))
    second, _ = causal_conv(x_RNC[:, cut:], weight_CW, state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), wanted.transpose(1, 2))
