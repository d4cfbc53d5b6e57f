"""Whatever is submitted, aborted, cut and retracted: equal tokens, one end each, no page lost."""

from __future__ import annotations

import pytest
from client import Client
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from null_runner import NullRunner, full, shared, state, window

from headstock.cache import pages
from headstock.requests import Grammar

VOCAB = 41
KINDS = [
    ("full",),
    ("full",),
    ("full", "window"),
    ("large", "window"),
    ("window",),
    ("full", "state"),
    ("state",),
    ("full", "window", "state"),
    ("full", "full"),
]
"""Page groups of the models served; a large group is never the one that runs out."""
ids = st.sampled_from([str(number) for number in range(40)])
stems = st.sampled_from([list(range(3, 3 + length)) for length in (1, 3, 4, 8, 9, 20)])
tails = st.lists(st.integers(1, 4), max_size=9)


class EngineMachine(RuleBasedStateMachine):
    """Random traffic on a random, mostly too small, engine."""

    @initialize(
        depth=st.sampled_from([1, 2]),
        policy=st.sampled_from(["fair", "fcfs", "lpm", "priority"]),
        page_tokens=st.sampled_from([1, 2, 4]),
        cache_tokens=st.integers(12, 72),
        num_slots=st.integers(1, 6),
        max_step_tokens=st.integers(1, 40),
        max_length=st.integers(12, 64),
        prefix_cache=st.booleans(),
        max_queued=st.sampled_from([2, 8, 100]),
        max_drafts=st.sampled_from([0, 0, 1, 3]),
        max_draft_rows=st.sampled_from([64, 64, 2]),
        kinds=st.sampled_from(KINDS),
        window_tokens=st.integers(2, 24),
        num_slabs=st.sampled_from([0, 0, 3, 5, 9]),
        checkpoint_tokens=st.sampled_from([None, None, 4, 9]),
    )
    def start(
        self,
        depth: int,
        policy: str,
        page_tokens: int,
        cache_tokens: int,
        num_slots: int,
        max_step_tokens: int,
        max_length: int,
        prefix_cache: bool,
        max_queued: int,
        max_drafts: int,
        max_draft_rows: int,
        kinds: tuple[str, ...],
        window_tokens: int,
        num_slabs: int,
        checkpoint_tokens: int | None,
    ) -> None:
        num_pages = 1 + -(-cache_tokens // page_tokens)
        made = {
            "full": full(page_tokens, num_pages),
            "window": window(window_tokens, page_tokens, num_pages),
            "large": full(page_tokens, num_pages + 40),
            "state": state(3 + num_slots),
        }
        groups = [made[kind] for kind in kinds]
        if num_slabs:
            groups = shared(groups, num_slabs + 2 * len(groups))
        self.grain = pages.STATE_GRAIN
        pages.STATE_GRAIN = page_tokens
        runner = NullRunner(
            num_slots=num_slots,
            max_step_tokens=max_step_tokens,
            max_length=max_length,
            vocab_size=VOCAB,
            depth=depth,
            groups=groups,
            poison=VOCAB - 1,
            max_drafts=max_drafts,
            max_draft_rows=max_draft_rows,
            num_adapters=2,
        )
        self.client = Client(
            runner,
            policy=policy,
            prefix_cache=prefix_cache,
            max_queued_requests=max_queued,
            checkpoint_tokens=checkpoint_tokens,
        )
        self.attempts: dict[str, int] = {}
        self.generations = dict.fromkeys("abc", 0)
        for name in self.generations:
            self.client.load(f"{name}0")

    @rule(
        request_id=ids,
        stem=stems,
        tail=tails,
        max_new_tokens=st.sampled_from([0, 1, 5, 12, 20, 30, None]),
        stop_ids=st.sampled_from([[], [], [5, 7, 9]]),
        min_new_tokens=st.sampled_from([0, 1]),
        seed=st.integers(0, 1),
        priority=st.integers(0, 2),
        namespace=st.sampled_from(["", "", "other"]),
        score_from=st.sampled_from([None, None, 0, 3]),
        known=st.sampled_from([0, 0, 0, 1, 3]),
        grammar=st.sampled_from([None, None, "2,0,4", "3,2,9", "1,5,5", "bad"]),
        drafts=st.sampled_from([True, True, False]),
        pool=st.sampled_from(["", "", "", "pool"]),
        adapter=st.sampled_from(["", "", "a", "b", "c"]),
        payer=st.sampled_from(["", "", "ann", "bob"]),
        share=st.sampled_from([1, 1, 3]),
    )
    def submit(
        self,
        request_id: str,
        stem: list[int],
        tail: list[int],
        max_new_tokens: int | None,
        stop_ids: list[int],
        min_new_tokens: int,
        seed: int,
        priority: int,
        namespace: str,
        score_from: int | None,
        known: int,
        grammar: str | None,
        drafts: bool,
        pool: str,
        adapter: str,
        payer: str,
        share: int,
    ) -> None:
        prompt = stem + tail
        attempt = self.attempts.get(request_id, -1) + 1
        self.attempts[request_id] = attempt
        given = {
            "max_new_tokens": max_new_tokens,
            "attempt": attempt,
            "stop_ids": stop_ids,
            "min_new_tokens": min(min_new_tokens, 1 if max_new_tokens is None else max_new_tokens),
            "seed": seed,
            "priority": priority,
            "namespace": namespace,
            "prompt_logprobs_from": score_from,
            "grammar": None if grammar is None else Grammar("regex", grammar, "regex"),
            "drafts": drafts,
            "pool": pool,
            "adapter": adapter and f"{adapter}{self.generations[adapter]}",
            "payer": payer,
            "share": share,
        }
        shadow = Client(self.client.runner)
        outputs = shadow.expected(shadow.submit(request_id, prompt, **given))[:known]
        if VOCAB - 1 in outputs or pool:
            outputs = []
        self.client.submit(request_id, prompt, output_ids=outputs, **given)

    @rule(request_id=ids, token=st.sampled_from([2**32 - 1, VOCAB, *[VOCAB - 1] * 3]))
    def submit_bad(self, request_id: str, token: int) -> None:
        """A token that the model lacks, or that it can't compute."""
        attempt = self.attempts.get(request_id, -1) + 1
        self.attempts[request_id] = attempt
        self.client.submit(request_id, [3, 4, 5, 6, token, 7], attempt=attempt)

    @rule(request_ids=st.lists(ids, min_size=2, max_size=5, unique=True), stem=stems)
    def submit_together(self, request_ids: list[str], stem: list[int]) -> None:
        """A burst of long requests with one prefix: the pages run out."""
        for place, request_id in enumerate(request_ids):
            self.attempts[request_id] = attempt = self.attempts.get(request_id, -1) + 1
            prompt = [*stem, place, 1, 2]
            self.client.submit(request_id, prompt, max_new_tokens=25, attempt=attempt)

    @rule(request_id=ids, of=ids, tail=tails)
    def submit_follow_up(self, request_id: str, of: str, tail: list[int]) -> None:
        """The next turn of a conversation: a prompt that begins with an earlier output."""
        earlier = self.client.records.get((of, self.attempts.get(of, 0)))
        if earlier is None or VOCAB - 1 in earlier.token_ids:
            return
        self.attempts[request_id] = attempt = self.attempts.get(request_id, -1) + 1
        prompt = [*earlier.submit.prompt_ids, *earlier.token_ids, *tail]
        self.client.submit(request_id, prompt, attempt=attempt, stop_ids=[5, 7, 9])

    @rule(where=st.sampled_from(["launch", "entered", "sample", "result"]), delay=st.integers(1, 3))
    def explode(self, where: str, delay: int) -> None:
        plans = self.client.runner.plans
        self.client.runner.explode[(plans[-1].step if plans else 0) + delay] = where

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        self.client.step(count)

    @rule(request_id=ids)
    def abort(self, request_id: str) -> None:
        self.client.abort(request_id)

    @rule(request_id=ids, keep=st.integers(0, 6), is_stale=st.booleans())
    def cut(self, request_id: str, keep: int, is_stale: bool) -> None:
        attempt = self.attempts.get(request_id, 0)
        self.client.cut(request_id, keep, attempt + is_stale)

    @rule(name=st.sampled_from("abc"))
    def reload(self, name: str) -> None:
        self.client.unload(f"{name}{self.generations[name]}")
        self.generations[name] += 1
        self.client.load(f"{name}{self.generations[name]}")

    @rule()
    def flush(self) -> None:
        self.client.flush()

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "client"):
            self.client.engine.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        pages.STATE_GRAIN = self.grain
        client = self.client
        client.finish()
        client.check_idle()
        for record in client.records.values():
            client.check_record(record)
            check_reason(client, record)
        client.flush()
        assert client.engine.state().free_pages == client.engine.state().total_pages


def check_reason(client: Client, record) -> None:
    """A request fails for a reason only: it is unfit, poisoned or one too many."""
    reason = record.ended.reason
    tokens = [*record.submit.prompt_ids, *record.token_ids]
    if VOCAB - 1 in record.submit.prompt_ids:
        assert reason.kind in ("error", "abort", "stop"), "the poison was computed"
    if reason.code == "computation_failed" and not record.saw_explosion:
        assert VOCAB - 1 in tokens, "a healthy request failed"
    if reason.kind == "error":
        assert reason.code
        assert reason.message


QUICK = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
EngineMachine.TestCase.settings = QUICK
TestEngine = EngineMachine.TestCase


@pytest.mark.slow
def test_the_same_for_long() -> None:
    thorough = settings(QUICK, max_examples=1000, stateful_step_count=60)
    run_state_machine_as_test(EngineMachine, settings=thorough)
