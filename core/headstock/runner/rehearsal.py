"""Plans that no request asked for: to see what a step takes, and to have met every feature.

Their rows have no pages of their own: they write to the null page.
"""

from __future__ import annotations

from headstock.wire.steps import (
    DRAW,
    FROM_DEVICE,
    FROM_HOST,
    POOLED,
    Admit,
    Masks,
    Rows,
    RunnerLimits,
    StepPlan,
)


def largest_plan(limits: RunnerLimits, num_tokens: int, step: int) -> StepPlan:
    """Return a plan of ``num_tokens`` in as many rows as may be, all of them on the null page.

    The first rows are as long as a request may be, and every row draws with all filters on.
    """
    num_rows = min(limits.num_slots, num_tokens, limits.max_step_tokens)
    queries: list[int] = []
    left = min(num_tokens, limits.max_step_tokens, num_rows * limits.max_length)
    for row in range(num_rows):
        queries.append(min(limits.max_length, left - (num_rows - row - 1)))
        left -= queries[-1]
    return _plan_of(limits, step, queries, FROM_HOST, [0] * sum(queries))


def largest_draft_plan(limits: RunnerLimits, step: int) -> StepPlan:
    """Return a plan in which as many rows as may be verify as many drafts as may be."""
    query = min(limits.max_drafts + 1, limits.max_length)
    most = min(limits.num_slots, limits.max_draft_rows)
    num_rows = max(1, min(most, limits.max_step_tokens // query))
    return _plan_of(limits, step, [query] * num_rows, FROM_DEVICE, [])


def _plan_of(
    limits: RunnerLimits, step: int, queries: list[int], source: int, host_ids: list[int]
) -> StepPlan:
    count = len(queries)
    slots = list(range(count))
    asked = {"temperature": 1.0, "top_k": 10, "top_p": 0.9, "min_p": 0.01}
    adapter, drafts = min(1, limits.num_adapters), limits.max_drafts > 0
    yields = DRAW if "draw" in limits.yields else POOLED[limits.yields[0]]
    return StepPlan(
        step=step,
        rows=Rows(slots, queries, queries, [source] * count, [yields] * count, [0] * count),
        host_ids=host_ids,
        admit=[Admit(slot, 0, 0, 1, adapter=adapter, drafts=drafts, **asked) for slot in slots],
    )


def rehearsal(limits: RunnerLimits) -> list[tuple[StepPlan, Masks | None]]:
    """Return plans with everything that a request may ask for, and the masks they wait for.

    A prompt, a decode, a masked decode, a decode with drafts where there are any, and the end;
    where nothing is drawn, a prompt that is pooled in each way there is, and the end.
    """
    length = min(4, limits.max_length - 3 - limits.max_drafts, limits.max_step_tokens)
    prompt = [0] * max(1, length)
    gone = Rows([], [], [], [], [], [])
    if "draw" not in limits.yields:
        return _pooled(prompt, [POOLED[name] for name in limits.yields])
    admit = Admit(
        slot=0,
        length=0,
        num_outputs=0,
        max_outputs=8,
        min_outputs=4,
        stop_ids=[0],
        temperature=1.0,
        top_k=10,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        bias_ids=[0],
        biases=[1.0],
        history=prompt,
        num_prompt=len(prompt),
        logprobs=1,
        asked_ids=[0],
        adapter=min(1, limits.num_adapters),
        drafts=limits.max_drafts > 0,
    )
    end = len(prompt)
    mask = b"\xff\xff\xff\xff" * -(-limits.vocab_size // 32)
    first = Rows([0], [end], [end], [FROM_HOST], [DRAW], [end - 1])
    plans: list[tuple[StepPlan, Masks | None]] = [
        (StepPlan(0, first, prompt, admit=[admit]), None),
        (StepPlan(1, _decode(1, end + 1), []), None),
        (StepPlan(2, _decode(1, end + 2), [], masked=[0]), Masks([0], [mask])),
    ]
    if limits.max_drafts:
        query = limits.max_drafts + 1
        plans.append((StepPlan(3, _decode(query, end + 2 + query), []), None))
    plans.append((StepPlan(4, gone, [], leave=[0]), None))
    return plans


def _pooled(prompt: list[int], kinds: list[int]) -> list[tuple[StepPlan, Masks | None]]:
    """Return a prompt that is pooled in each of ``kinds``, and its end."""
    plans: list[tuple[StepPlan, Masks | None]] = []
    for kind in kinds:
        pooled = Rows([0], [len(prompt)], [len(prompt)], [FROM_HOST], [kind], [0])
        admit = Admit(slot=0, length=0, num_outputs=0, max_outputs=0)
        plans.append((StepPlan(len(plans), pooled, prompt, admit=[admit]), None))
        plans.append((StepPlan(len(plans), Rows([], [], [], [], [], []), [], leave=[0]), None))
    return plans


def _decode(query: int, kv_max: int) -> Rows:
    """Return one row that decodes in slot 0."""
    return Rows([0], [query], [kv_max], [FROM_DEVICE], [DRAW], [0])
