"""Fair shares: who sends much waits behind itself, not before others."""

from __future__ import annotations

import random

from headstock.requests import SamplingParams, TokenIds
from headstock.scheduler import Scheduler
from headstock.wire.messages import Submit
from headstock.wire.steps import PageGroup, RunnerLimits, StepPlan, StepResult


class Served:
    """A scheduler with one slot, in which every request runs to its end."""

    def __init__(self, num_slots: int = 1) -> None:
        group = PageGroup("full", 4, 1, 400)
        limits = RunnerLimits(num_slots, 256, 256, 1000, 1, [group])
        self.scheduler = Scheduler(limits, policy="fair")
        self.count = 0

    def submit(
        self,
        payer: str,
        num_prompt: int = 8,
        num_outputs: int = 1,
        share: int = 1,
        user: str = "",
    ) -> None:
        self.count += 1
        self.scheduler.submit(
            Submit(
                id=f"{user or payer}{self.count}",
                prompt_ids=TokenIds([self.count] * num_prompt),
                params=SamplingParams(max_new_tokens=num_outputs, temperature=0, sampling_seed=0),
                payer=payer,
                share=share,
                user=user,
            ),
            0.0,
        )

    def step(self) -> list[str]:
        """Run a step; returns whose requests ended."""
        plan = self.scheduler.plan(0.0)
        assert plan is not None
        self.scheduler.settle(drawn(plan), 0.0)
        return [ended.id.rstrip("0123456789") for ended in self.scheduler.take_ended()]

    def order(self) -> str:
        """Run all; returns whose requests ended, in order."""
        ended = ""
        while self.scheduler.has_work:
            ended += "".join(self.step())
        return ended


def drawn(plan: StepPlan) -> StepResult:
    slots = [s for s, each in zip(plan.rows.slots, plan.rows.yields, strict=True) if each]
    return StepResult(plan.step, slots, [1] * len(slots), [7] * len(slots), [0] * len(slots))


def test_who_sends_one_request_is_next_however_many_another_sent() -> None:
    served = Served()
    for _ in range(50):
        served.submit("h")
    served.submit("p")
    assert served.order().index("p") <= 1


def test_tokens_are_shared_not_requests() -> None:
    served = Served()
    for _ in range(12):
        served.submit("l", num_prompt=32)
    for _ in range(12):
        served.submit("s", num_prompt=8)
    first = served.order()[:10]
    assert first.count("s") == 8
    assert first.count("l") == 2


def test_shares_are_weighted() -> None:
    served = Served()
    for _ in range(12):
        served.submit("a", share=3)
        served.submit("b", share=1)
    first = served.order()[:12]
    assert first.count("a") == 9


def test_who_was_idle_saves_nothing_up() -> None:
    served = Served()
    for _ in range(20):
        served.submit("a")
    for _ in range(10):
        served.step()
    for _ in range(10):
        served.submit("b")
    rest = served.order()
    assert abs(rest[:10].count("a") - 5) <= 1


def test_outputs_count_once_they_are_there() -> None:
    served = Served()
    served.submit("a", num_outputs=40)
    while served.scheduler.has_work:
        served.step()
    # The clocks of others stand where "a" began: it has 40 tokens to make up for.
    for _ in range(4):
        served.submit("b")
    served.submit("a")
    for _ in range(4):
        served.submit("b")
    assert 3 <= served.order().index("a") <= 6


def test_one_payer_alone_is_served_in_the_order_of_arrival() -> None:
    served = Served()
    for num_prompt in (9, 3, 27, 1, 14):
        served.submit("a", num_prompt=num_prompt)
    ids: list[str] = []
    while served.scheduler.has_work:
        plan = served.scheduler.plan(0.0)
        assert plan is not None
        served.scheduler.settle(drawn(plan), 0.0)
        ids += [ended.id for ended in served.scheduler.take_ended()]
    assert ids == ["a1", "a2", "a3", "a4", "a5"]


def test_of_one_payer_too_who_sends_one_request_is_next() -> None:
    served = Served()
    for _ in range(50):
        served.submit("key", user="h")
    served.submit("key", user="p")
    assert served.order().index("p") <= 1


def test_the_users_of_a_payer_take_turns_among_themselves() -> None:
    served = Served()
    for _ in range(6):
        served.submit("key", user="a")
    for _ in range(6):
        served.submit("key", user="b")
    order = served.order()
    assert sorted(order) == list("a" * 6 + "b" * 6)
    assert all(abs(order[:n].count("a") - order[:n].count("b")) <= 2 for n in range(13))


def test_who_names_no_user_is_one_among_the_users() -> None:
    served = Served()
    for _ in range(20):
        served.submit("x")
    served.submit("x", user="p")
    assert served.order().index("p") <= 1


def test_a_payer_gets_no_more_by_many_users() -> None:
    """Each of its requests under another name, and its share is that of one payer all the same."""
    served = Served()
    for number in range(40):
        served.submit("m", user="abcdefghij"[number % 10])
        served.submit("o")
    order = served.order()
    assert 18 <= order[:40].count("o") <= 22


def test_one_users_outputs_count_against_it_alone() -> None:
    served = Served(num_slots=1)
    served.submit("key", num_outputs=100, user="long")
    while "long" not in served.step():
        pass
    for _ in range(3):
        served.submit("key", user="l", num_outputs=1)
        served.submit("key", user="s", num_outputs=1)
    assert sorted(served.order()) == list("lllsss")


def test_the_queue_stays_sorted_through_any_mixture_of_payers_and_users() -> None:
    draw = random.Random(7)
    served = Served(num_slots=2)
    ended = 0
    for _ in range(300):
        if draw.random() < 0.6:
            served.submit(draw.choice("xyz"), user=draw.choice("ab"), share=draw.choice((1, 3)))
        elif served.scheduler.has_work:
            ended += len(served.step())
        queue = served.scheduler._queue
        keys = [queue._policy.key(request) for request in queue._requests]
        assert keys == queue._keys == sorted(keys)
    assert ended + len(served.order()) == served.count
