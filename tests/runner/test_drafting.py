"""The n-gram drafter at work on the tiny model: what it drafts, and that it changes no token."""

from __future__ import annotations

import pytest
import torch

from headstock.ops.base import OpRegistry, Resolver
from headstock.plugins.host import HostDevice
from headstock.speculative.ngram import open_ngram
from headstock.speculative.provider import DrafterSpec
from headstock.wire.steps import (
    DRAW,
    FROM_DEVICE,
    FROM_HOST,
    Admit,
    PageAppends,
    Rows,
    StepPlan,
    TreeNodes,
)

NUM_DRAFTS, VOCAB, SLOTS, MAX_LENGTH = 3, 61, 6, 64
REPEATING = [3, 14, 15, 9, 26, 5, 3, 14, 15, 9, 26, 5, 3, 14]


class Echo:
    """Drafts a slot's true continuation, which the test knows; then what was asked of it."""

    def __init__(self, futures: dict[int, list[int]]) -> None:
        self.futures = futures

    def draft(self, histories_SL, slots_R, known_R):
        drafts_RK = torch.full((len(slots_R), NUM_DRAFTS), -1, dtype=torch.int32)
        for row, (slot, known) in enumerate(zip(slots_R.tolist(), known_R.tolist(), strict=True)):
            told = self.futures.get(slot, [])[known : known + NUM_DRAFTS] if known else []
            drafts_RK[row, : len(told)] = torch.tensor(told, dtype=torch.int32)
        return drafts_RK


def ngram_drafter():
    spec = DrafterSpec(
        num_drafts=NUM_DRAFTS, num_slots=SLOTS, max_length=MAX_LENGTH, vocab_size=VOCAB
    )
    return open_ngram(spec, Resolver(OpRegistry(), HostDevice()))


class Desk:
    """Plans wide steps for a few slots on one runner, and keeps what they drew."""

    def __init__(self, runner) -> None:
        self.runner = runner
        self.step = 0
        self.outputs: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self.ready: dict[int, int] = {}
        self.counts: list[list[int]] = []
        self.done: set[int] = set()

    def admit(self, slot: int, prompt: list[int], *, drafts: bool = True, **params) -> None:
        admit = Admit(
            slot, 0, 0, params.pop("max_outputs", 40), history=prompt, num_prompt=len(prompt),
            drafts=drafts, **params,
        )  # fmt: skip
        pages = list(range(1 + slot * 16, 17 + slot * 16))
        rows = Rows([slot], [len(prompt)], [len(prompt)], [FROM_HOST], [DRAW], [0])
        appends = PageAppends([0] * 16, [slot] * 16, list(range(16)), pages)
        self.outputs[slot], self.lengths[slot] = [], len(prompt)
        self._run(rows, prompt, [admit], appends)

    def decode(self, *queries: tuple[int, int]) -> None:
        slots = [slot for slot, _ in queries]
        widths = [query for _, query in queries]
        ends = [self.lengths[slot] + query for slot, query in queries]
        count = len(slots)
        rows = Rows(slots, widths, ends, [FROM_DEVICE] * count, [DRAW] * count, [0] * count)
        self._run(rows, [], [], PageAppends())

    def _run(self, rows, ids, admits, appends) -> None:
        self.step += 1
        plan = StepPlan(self.step, rows, ids, admit=admits, append=appends, tree=TreeNodes())
        result = self.runner.result(self.runner.launch(plan))
        left = iter(result.ids)
        for slot, count, done in zip(result.slots, result.counts, result.done, strict=True):
            if rows.source[0] == FROM_DEVICE:
                self.lengths[slot] += count
            self.outputs[slot] += [next(left) for _ in range(count)]
            if done:
                self.done.add(slot)
        self.ready.update(zip(result.slots, result.drafts or [0] * len(result.slots), strict=True))
        self.counts.append(result.counts)


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_k": 30, "seed": 5}])
def test_ngram_drafts_change_no_token(static_kit, tape_device, params, captures):
    kit = static_kit
    device = tape_device() if captures else None
    runner = kit.runner(
        kit.model, device, max_drafts=NUM_DRAFTS, captures=captures, drafter=ngram_drafter()
    )
    wanted = kit.naive(kit.job(REPEATING, 40, params=dict(params)))
    desk = Desk(runner)
    desk.admit(0, REPEATING, **params)
    while len(desk.outputs[0]) < 36:
        desk.decode((0, NUM_DRAFTS + 1))
    assert desk.outputs[0] == wanted[: len(desk.outputs[0])]
    histories = runner._upload.optional.histories.histories_SL
    tokens = REPEATING + desk.outputs[0]
    assert histories[0, : len(tokens)].tolist() == tokens
    if not params:
        assert max(map(sum, desk.counts)) > 1, "greedy text of a tiny model repeats itself"


def test_a_slot_with_no_match_has_no_drafts_and_draws_one_id(kit):
    runner = kit.runner(kit.model, max_drafts=NUM_DRAFTS, drafter=ngram_drafter())
    prompt = [3, 14, 15, 9]
    wanted = kit.naive(kit.job(prompt, 4))
    assert len({*prompt, *wanted[:2]}) == 6, "nothing repeats so soon"
    desk = Desk(runner)
    desk.admit(0, prompt)
    assert desk.ready == {0: 0}
    desk.decode((0, NUM_DRAFTS + 1))
    assert desk.counts[-1] == [1]
    assert desk.outputs[0] == wanted[:2]


@pytest.mark.parametrize("width", [1, NUM_DRAFTS + 1])
def test_rows_with_drafts_and_without_share_a_step(kit, width):
    prompts = {0: REPEATING, 1: [35, 8, 9], 2: [7, 7, 50, 7, 7]}
    wanted = {slot: kit.naive(kit.job(ids, 24)) for slot, ids in prompts.items()}
    drafter = Echo({slot: prompts[slot] + wanted[slot] for slot in (0, 2)})
    runner = kit.runner(kit.model, max_drafts=NUM_DRAFTS, drafter=drafter)
    desk = Desk(runner)
    for slot, prompt in prompts.items():
        desk.admit(slot, prompt, drafts=slot != 1)
    for _ in range(4):
        desk.decode((0, width), (1, 1), (2, width))
    assert desk.counts[-1] == [width, 1, width]
    for slot, ids in desk.outputs.items():
        assert ids == wanted[slot][: len(ids)]


def test_a_stop_id_and_the_last_output_end_a_row_amid_right_drafts(kit):
    wanted = kit.naive(kit.job(REPEATING, 12))
    for limits in ({"stop_ids": [wanted[6]]}, {"max_outputs": 7}):
        drafter = Echo({0: REPEATING + wanted})
        desk = Desk(kit.runner(kit.model, max_drafts=NUM_DRAFTS, drafter=drafter))
        desk.admit(0, REPEATING, **limits)
        while not desk.done:
            desk.decode((0, NUM_DRAFTS + 1))
        end = wanted.index(wanted[6]) + 1 if "stop_ids" in limits else 7
        assert desk.outputs[0] == wanted[:end]
        assert desk.ready == {0: 0}, "who is done has nothing drafted"


def test_min_outputs_and_biases_hold_at_each_drafted_position(kit):
    free = kit.naive(kit.job(REPEATING, 6))
    params = {"stop_ids": [free[2]], "min_outputs": 5, "bias_ids": [free[4]], "biases": [-9.0]}
    wanted = kit.naive(kit.job(REPEATING, 12, params=dict(params)))
    drafter = Echo({0: REPEATING + wanted})
    desk = Desk(kit.runner(kit.model, max_drafts=NUM_DRAFTS, drafter=drafter))
    desk.admit(0, REPEATING, max_outputs=12, **params)
    while not desk.done:
        desk.decode((0, NUM_DRAFTS + 1))
    assert desk.outputs[0] == wanted
    assert max(map(sum, desk.counts)) == NUM_DRAFTS + 1


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.6},
        {"frequency_penalty": 0.7, "presence_penalty": 0.4},
        {"frequency_penalty": 0.3, "temperature": 0.7, "seed": 3},
    ],
)
@pytest.mark.parametrize("num_right", [3, 1])
def test_penalties_hold_at_each_drafted_position(kit, params, num_right):
    wanted = kit.naive(kit.job(REPEATING, 25, params=dict(params)))
    future = REPEATING + wanted
    if num_right == 1:  # every third draft is wrong
        future = [n if place % 3 else (n + 1) % VOCAB for place, n in enumerate(future)]
    desk = Desk(kit.runner(kit.model, max_drafts=NUM_DRAFTS, drafter=Echo({0: future})))
    desk.admit(0, REPEATING, max_outputs=25, **params)
    while not desk.done:
        desk.decode((0, NUM_DRAFTS + 1))
    assert desk.outputs[0] == wanted
    assert max(map(sum, desk.counts)) > 1


def test_what_a_drafter_must_not_say_counts_for_nothing(kit):
    class Wild:
        def draft(self, histories_SL, slots_R, known_R):
            wild = [VOCAB, 5, 2**31 - 1]
            return torch.tensor([wild] * len(slots_R), dtype=torch.int32)

    wanted = kit.naive(kit.job(REPEATING, 5))
    desk = Desk(kit.runner(kit.model, max_drafts=NUM_DRAFTS, drafter=Wild()))
    desk.admit(0, REPEATING)
    for _ in range(4):
        desk.decode((0, NUM_DRAFTS + 1))
    assert desk.ready == {0: 0}
    assert desk.outputs[0] == wanted
