"""Plans that no request asked for: to see what a step takes, and to have met every feature.

Their rows have no pages of their own: they write to the null page.
"""

from __future__ import annotations

from headstock.wire.steps import FROM_DEVICE, FROM_HOST, Admit, Rows, RunnerLimits, StepPlan


def profile_plan(limits: RunnerLimits, num_tokens: int, step: int) -> StepPlan:
    """Return a plan of ``num_tokens`` in as many rows as may be, all of them on the null page.

    The first rows are as long as a request may be, and every row draws with all filters on.
    """
    num_rows = min(limits.num_slots, num_tokens, limits.max_step_tokens)
    queries: list[int] = []
    left = min(num_tokens, limits.max_step_tokens, num_rows * limits.max_length)
    for row in range(num_rows):
        queries.append(min(limits.max_length, left - (num_rows - row - 1)))
        left -= queries[-1]
    slots = list(range(num_rows))
    return StepPlan(
        step=step,
        rows=Rows(slots, queries, queries, [FROM_HOST] * num_rows, [1] * num_rows, [0] * num_rows),
        host_ids=[0] * sum(queries),
        admit=[
            Admit(slot, 0, 0, 1, temperature=1.0, top_k=10, top_p=0.9, min_p=0.01) for slot in slots
        ],
    )


def rehearsal(limits: RunnerLimits) -> list[StepPlan]:
    """Return plans with everything that a request may ask for: a prompt, a decode, a farewell."""
    length = min(4, limits.max_length - 1, limits.max_step_tokens)
    prompt = [0] * length
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
        num_prompt=length,
        logprobs=1,
        asked_ids=[0],
    )
    score = [length - 1]
    return [
        StepPlan(0, Rows([0], [length], [length], [FROM_HOST], [1], score), prompt, admit=[admit]),
        StepPlan(1, Rows([0], [1], [length + 1], [FROM_DEVICE], [1], [0]), []),
        StepPlan(2, Rows([], [], [], [], [], []), [], leave=[0]),
    ]
