"""Drafts, masks, several page groups and pooled rows, step by step on the tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headstock.wire.steps import (
    DRAW,
    EMBED_TOKENS,
    FROM_DEVICE,
    FROM_HOST,
    POOL,
    SCORE_TOKENS,
    Admit,
    Masks,
    PageAppends,
    Rows,
    StepPlan,
    TreeNodes,
)

PROMPT = [3, 14, 15, 9, 26, 5]
VOCAB = 61


def appends(slot, pages, group=0):
    return PageAppends([group] * len(pages), [slot] * len(pages), list(range(len(pages))), pages)


def prompt_plan(step, slot, prompt, pages, *, params=None, yields=DRAW, masked=()):
    admit = Admit(slot, 0, 0, 50, **(params or {}))
    rows = Rows([slot], [len(prompt)], [len(prompt)], [FROM_HOST], [yields], [0])
    return StepPlan(
        step,
        rows,
        prompt,
        admit=[admit],
        append=appends(slot, pages),
        tree=TreeNodes(),
        masked=list(masked),
    )


def verify(runner, step, slot, length, drafts, num_drafts, *, tree=None):
    """Draft ``drafts`` for a slot and run the step that verifies them; return its result."""
    table = runner._upload.table.slots.drafts_SK
    table[slot] = torch.tensor(drafts + [-1] * (table.shape[1] - len(drafts)), dtype=torch.int32)
    query = num_drafts + 1
    rows = Rows([slot], [query], [length + query], [FROM_DEVICE], [DRAW], [0])
    return runner.result(runner.launch(StepPlan(step, rows, [], tree=tree)))


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize(
    ("right", "drafted"), [(0, 3), (1, 3), (2, 3), (3, 3), (0, 0), (1, 1), (2, 2)]
)
def test_drafts_change_nothing_but_how_many_ids_come(
    static_kit, tape_device, right, drafted, captures
):
    kit = static_kit
    device = tape_device() if captures else None
    runner = kit.runner(kit.model, device, max_drafts=3, captures=captures)
    wanted = kit.naive(kit.job(PROMPT, 16))
    plan = prompt_plan(1, 0, PROMPT, [1, 2, 3, 4, 5, 6])
    outputs = list(runner.result(runner.launch(plan)).ids)
    step = 1
    while len(outputs) < 12:
        step += 1
        true = wanted[len(outputs) : len(outputs) + right]
        wrong = [(n + 1) % VOCAB for n in wanted[len(outputs) + right :]]
        drafts = (true + wrong)[:drafted]
        length = len(PROMPT) + len(outputs) - 1
        result = verify(runner, step, 0, length, drafts, 3, tree=TreeNodes())
        assert result.counts == [1 + min(right, drafted)]
        outputs += result.ids
    assert outputs == wanted[: len(outputs)]


def test_sampled_drafts_are_lossless(kit):
    params = {"temperature": 0.9, "top_k": 20, "seed": 11}
    wanted = kit.naive(kit.job(PROMPT, 10, params=dict(params)))
    runner = kit.runner(kit.model, max_drafts=3)
    plan = prompt_plan(1, 0, PROMPT, [1, 2, 3, 4, 5, 6], params=params)
    outputs = list(runner.result(runner.launch(plan)).ids)
    result = verify(runner, 2, 0, len(PROMPT), [*wanted[1:3], wanted[3] ^ 1], 3)
    assert result.counts == [3]
    assert outputs + result.ids == wanted[:4]


def test_a_stop_among_accepted_ids_ends_them(kit):
    wanted = kit.naive(kit.job(PROMPT, 10))
    stop = wanted[2]
    runner = kit.runner(kit.model, max_drafts=3)
    plan = prompt_plan(1, 0, PROMPT, [1, 2, 3, 4], params={"stop_ids": [stop]})
    runner.result(runner.launch(plan))
    result = verify(runner, 2, 0, len(PROMPT), wanted[1:4], 3)
    assert result.ids == wanted[1 : wanted.index(stop) + 1]
    assert result.done == [1]


def test_a_prompt_may_share_a_step_with_drafts(kit):
    wanted = kit.naive(kit.job(PROMPT, 10))
    other = [35, 8, 9]
    runner = kit.runner(kit.model, max_drafts=3)
    runner.result(runner.launch(prompt_plan(1, 0, PROMPT, [1, 2, 3, 4])))
    drafts_SK = runner._upload.table.slots.drafts_SK
    drafts_SK[0] = torch.tensor([wanted[1], wanted[2], -1], dtype=torch.int32)
    plan = StepPlan(
        2,
        Rows([0, 1], [4, 3], [10, 3], [FROM_DEVICE, FROM_HOST], [DRAW, DRAW], [0, 0]),
        other,
        admit=[Admit(1, 0, 0, 9)],
        append=appends(1, [7, 8]),
        tree=TreeNodes(),
    )
    result = runner.result(runner.launch(plan))
    assert result.counts == [3, 1]
    assert result.ids == [*wanted[1:4], kit.naive(kit.job(other, 1))[0]]


def mask_of(*ids):
    bits = np.zeros(64, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("captures", [False, True])
def test_masked_rows_draw_what_their_masks_allow_and_others_are_left_alone(
    static_kit, tape_device, captures
):
    kit = static_kit
    device = tape_device() if captures else None
    runner = kit.runner(kit.model, device, captures=captures)
    logits = kit.model.naive(PROMPT)[-1]
    launched = runner.launch(prompt_plan(1, 0, PROMPT, [1, 2, 3], masked=[0]))
    runner.sample(launched, Masks([0], [mask_of(5, 17, 33)]))
    first = runner.result(launched).ids[0]
    assert first == max((5, 17, 33), key=lambda n: logits[n])
    runner.result(runner.launch(prompt_plan(2, 1, [35, 8, 9], [4, 5])))
    rows = Rows([0, 1], [1, 1], [7, 4], [FROM_DEVICE] * 2, [DRAW] * 2, [0, 0])
    launched = runner.launch(StepPlan(3, rows, [], tree=TreeNodes(), masked=[0]))
    runner.sample(launched, Masks([0], [mask_of(60)]))
    result = runner.result(launched)
    assert result.ids == [60, kit.naive(kit.job([35, 8, 9], 2))[1]]
    free = runner.result(
        runner.launch(
            StepPlan(4, Rows([0], [1], [8], [FROM_DEVICE], [DRAW], [0]), [], tree=TreeNodes())
        )
    )
    assert free.ids == [int(kit.model.naive([*PROMPT, first, 60])[-1].argmax())]


def test_each_group_has_its_own_table(kit):
    kit.model.layers[1].group = 1
    runner = kit.runner(kit.model, kinds=("full", "full"))
    for layer in kit.model.layers:
        layer.kv.zero_()
    plan = prompt_plan(1, 0, PROMPT, [1, 2, 3])
    both = PageAppends([0, 0, 0, 1, 1, 1], [0] * 6, [0, 1, 2] * 2, [1, 2, 3, 40, 7, 22])
    plan = StepPlan(1, plan.rows, PROMPT, admit=plan.admit, append=both, tree=TreeNodes())
    outputs = list(runner.result(runner.launch(plan)).ids)
    for step in range(2, 7):
        rows = Rows([0], [1], [len(PROMPT) + step - 1], [FROM_DEVICE], [DRAW], [0])
        outputs += runner.result(runner.launch(StepPlan(step, rows, [], steady=step > 2))).ids
    assert outputs == kit.naive(kit.job(PROMPT, 6))
    written = [
        (layer.kv.flatten(1).abs().sum(1) > 0).nonzero().flatten() for layer in kit.model.layers
    ]
    assert {1, 2, 3} <= set(written[0].tolist())
    assert not {7, 22} & set(written[0].tolist())


def test_pooled_rows_yield_vectors_beside_rows_that_draw(kit):
    runner = kit.runner(kit.model)
    plan = StepPlan(
        1,
        Rows([0, 1], [6, 3], [6, 3], [FROM_HOST] * 2, [POOL, DRAW], [0, 0]),
        [*PROMPT, 35, 8, 9],
        admit=[Admit(0, 0, 0, 0), Admit(1, 0, 0, 9)],
        append=PageAppends([0] * 4, [0, 0, 1, 1], [0, 1, 0, 1], [1, 2, 3, 4]),
        tree=TreeNodes(),
    )
    result = runner.result(runner.launch(plan))
    assert result.slots == [1]
    assert result.ids == [kit.naive(kit.job([35, 8, 9], 1))[0]]
    (pooled,) = result.pooled
    vector = torch.from_numpy(np.frombuffer(pooled.values, "<f4").copy())
    assert pooled.slot == 0
    right = kit.model.naive(PROMPT)[-1]
    torch.testing.assert_close(vector @ kit.model.embedding.T, right, rtol=1e-4, atol=1e-4)


def test_rows_yield_something_of_each_token_beside_rows_that_yield_one_vector(kit):
    runner = kit.runner(kit.model)
    plan = StepPlan(
        1,
        Rows(
            [2, 0, 1, 3],
            [3, 6, 2, 1],
            [3, 6, 2, 1],
            [FROM_HOST] * 4,
            [SCORE_TOKENS, EMBED_TOKENS, POOL, EMBED_TOKENS],
            [0] * 4,
        ),
        [35, 8, 9, *PROMPT, 35, 8, 60],
        admit=[Admit(slot, 0, 0, 0) for slot in range(4)],
        append=PageAppends([0] * 6, [2, 0, 0, 0, 1, 3], [0, 0, 1, 2, 0, 0], [1, 2, 3, 4, 5, 6]),
        tree=TreeNodes(),
    )
    kit.model.poison = 60
    result = runner.result(runner.launch(plan))
    assert [fault.slot for fault in result.faults] == [3]
    found = {one.slot: np.frombuffer(one.values, "<f4") for one in result.pooled}
    assert found.keys() == {0, 1, 2}
    scores, vectors = (
        torch.from_numpy(found[slot].copy()).reshape(n, -1) for slot, n in ((2, 3), (0, 6))
    )
    right = kit.model.naive(PROMPT)
    torch.testing.assert_close(vectors @ kit.model.embedding.T, right, rtol=1e-4, atol=1e-4)
    want = kit.model.naive([35, 8, 9])[:, :2]
    torch.testing.assert_close(scores, want, rtol=1e-4, atol=1e-4)
    vector = torch.from_numpy(found[1].copy())
    right = kit.model.naive([35, 8])[-1]
    torch.testing.assert_close(vector @ kit.model.embedding.T, right, rtol=1e-4, atol=1e-4)


def test_a_vector_that_is_no_number_is_the_fault_of_its_row_alone(kit):
    runner = kit.runner(kit.model)
    kit.model.poison = 60
    plan = StepPlan(
        1,
        Rows([0, 1], [3, 3], [3, 3], [FROM_HOST] * 2, [POOL, POOL], [0, 0]),
        [35, 60, 60, 35, 8, 9],
        admit=[Admit(0, 0, 0, 0), Admit(1, 0, 0, 0)],
        append=PageAppends([0] * 2, [0, 1], [0, 0], [1, 2]),
        tree=TreeNodes(),
    )
    result = runner.result(runner.launch(plan))
    assert [fault.slot for fault in result.faults] == [0]
    assert "vector" in result.faults[0].message
    assert [pooled.slot for pooled in result.pooled] == [1]
