"""Prompts of the gated delta rule: chunks computed at once, and chunk by chunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_here import Here

from headstock.ops.cases.batches import make_step
from headstock.ops.cases.linear_attention import (
    DeltaInputs,
    begun_states,
    dense_linear_attention,
    go_on,
    make_delta_inputs,
    pages_of,
    plain_linear_spec,
)
from headstock_triton.linear_attention import (
    LONG_ROWS,
    PromptTuning,
    TritonLinearAttention,
    prompt_tuning_of,
)
from headstock_triton.target import Target

SPEC = replace(plain_linear_spec(torch.float32), num_key_heads=1, num_value_heads=2)
WHOLE = PromptTuning(columns=32)


def provider_of(spec=SPEC, *, is_whole: bool = True) -> TritonLinearAttention:
    provider = TritonLinearAttention(spec, Here(), WHOLE)
    if not is_whole:
        provider._tuning = None
    return provider


def check(
    rows, inputs: DeltaInputs, provider=None, *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Hold outputs and states against float64."""
    step = make_step(rows, 16, Here.torch_device)
    provider = provider or provider_of()
    kv, batch = begun_states(provider, step, inputs)
    y_TVd = go_on(provider, kv, batch, inputs)
    _, state = provider.read(kv, batch.page_table_RP[: len(rows), 1])
    y, after = dense_linear_attention(provider.spec, rows, inputs)
    torch.testing.assert_close(y_TVd[: step.num_real_tokens].double(), y, rtol=rtol, atol=atol)
    torch.testing.assert_close(state.double(), after, rtol=rtol, atol=atol)


@pytest.mark.parametrize("is_whole", [True, False])
def test_both_ways_agree_with_float64(is_whole: bool) -> None:
    rows = [(70, 70), (1, 9), (17, 24), (2, 2)]
    inputs = make_delta_inputs(SPEC, rows, Here.torch_device)
    check(rows, inputs, provider_of(is_whole=is_whole))


def test_fast_decays_take_no_digits_from_slow_ones() -> None:
    """Sums over a chunk reach thousands, while neighbours differ by thousandths."""
    rows = [(64, 64)]
    inputs = make_delta_inputs(SPEC, rows, Here.torch_device)
    inputs.weights.decay_V[:] = 1.6
    inputs.a_rows[0][:48], inputs.a_rows[0][48:] = 14.0, -6.0
    check(rows, inputs, rtol=2e-5, atol=2e-6)


def test_equal_keys_that_replace_each_other_are_solved_for() -> None:
    """Powers of what tokens do to each other would grow past all digits."""
    rows = [(100, 100)]
    inputs = make_delta_inputs(SPEC, rows, Here.torch_device, speed=-8.0)
    inputs.qkv_rows[0][:, : 2 * SPEC.key_size] = inputs.qkv_rows[0][0, : 2 * SPEC.key_size].clone()
    inputs.b_rows[0][:] = 6.0
    check(rows, inputs)


def test_layers_of_one_step_share_its_chunks() -> None:
    rows = [(20, 20), (70, 70)]
    inputs = make_delta_inputs(SPEC, rows, Here.torch_device)
    provider, step = provider_of(), make_step(rows, 16, Here.torch_device)
    first, batch = begun_states(provider, step, inputs)
    y = go_on(provider, first, batch, inputs)
    second = torch.zeros_like(first)
    args = [torch.cat(x) for x in (inputs.qkv_rows, inputs.b_rows, inputs.a_rows)]
    again = provider.run(args[0], args[1], args[2], inputs.weights, second, batch)
    assert torch.equal(y, again)
    pages = batch.page_table_RP[: len(rows), 1]
    assert torch.equal(provider.read(first, pages)[1], provider.read(second, pages)[1])


def test_more_long_rows_than_programs_are_launched_for() -> None:
    rows = [(17, 17) if row % 3 else (1, 5) for row in range(30)]
    spec = replace(SPEC, num_value_heads=1)
    inputs = make_delta_inputs(spec, rows, Here.torch_device)
    check(rows, inputs, provider_of(spec))
    assert sum(tokens > 1 for tokens, _ in rows) > LONG_ROWS


def test_a_later_step_lists_its_own_chunks() -> None:
    provider = provider_of()
    for rows in ([(70, 70)], [(20, 20), (33, 33)]):
        check(rows, make_delta_inputs(SPEC, rows, Here.torch_device), provider)


def test_a_state_that_is_found_stays_as_it_is() -> None:
    rows = [(40, 50)]
    inputs = make_delta_inputs(SPEC, rows, Here.torch_device)
    provider, step = provider_of(), make_step(rows, 16, Here.torch_device)
    kv, batch = begun_states(provider, step, inputs)
    found = batch.page_table_RP[:1, 0]
    before = [x.clone() for x in provider.read(kv, found)]
    go_on(provider, kv, batch, inputs)
    assert all(map(torch.equal, before, provider.read(kv, found)))
    left = replace(batch, page_table_RP=pages_of([(1, 1)], Here.torch_device), groups=())
    go_on(provider, kv, left, inputs)
    _, state = provider.read(kv, found)
    torch.testing.assert_close(state, provider.read(kv, batch.page_table_RP[:1, 1])[1])


def test_few_tokens_of_a_row_are_no_chunk_of_many() -> None:
    provider = provider_of()
    keys = []
    for tokens in (1, 4, 16, 17):
        provider.plan(make_step([(tokens, tokens)], 16, Here.torch_device).batch)
        keys.append(provider.graph_key)
    assert keys == [(0,), (1,), (1,), (2,)]


@pytest.mark.parametrize(
    ("key_size", "value_size", "warps"),
    [(128, 128, 4), (64, 64, 4), (16, 32, 8), (32, 16, 8), (128, 32, 8)],
)
def test_small_heads_are_prepared_by_more_warps(key_size: int, value_size: int, warps: int) -> None:
    """With four, ptxas spills and the code for sm_90 is wrong: seen on a card."""
    spec = replace(plain_linear_spec(torch.bfloat16), key_size=key_size, value_size=value_size)
    tuning = prompt_tuning_of(spec, Target(kind="cuda", arch=90, num_sms=132))
    assert tuning is not None
    assert tuning.prepare_warps == warps
