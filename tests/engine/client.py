"""An API process for tests: submits, collects, and checks what the engine must keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from null_model import expected_outputs, expected_vector
from null_runner import NullRunner
from toy_grammar import ToyCompiler, ToyGrammar

from headstock.config.schema import CacheSettings, SchedulerSettings
from headstock.engine import Engine, RunnerError, build_engine
from headstock.errors import AdapterError, HeadstockError
from headstock.requests import SamplingParams, TokenIds
from headstock.wire.messages import (
    Abort,
    Cut,
    Ended,
    FlushCache,
    FromEngine,
    LoadAdapter,
    Submit,
    ToEngine,
    Tokens,
    UnloadAdapter,
    Vector,
)
from headstock.wire.requests import TokenLogprobs


@dataclass
class Record:
    """One submitted attempt and what came back."""

    submit: Submit
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    ended: Ended | None = None
    kept: int | None = None
    saw_explosion: bool = False
    vector: bytes | None = None


class ToyShelf:
    """Reads adapters as soon as it is told to work, or at once."""

    def __init__(self, *, is_quick: bool) -> None:
        self.is_quick = is_quick
        self.broken: set[str] = set()
        self.kept: set[str] = set()
        self.reading: list[str] = []

    def fetch(self, adapter: str, path: str) -> None:
        assert adapter not in self.kept
        self.kept.add(adapter)
        self.reading.append(adapter)

    def fetched(self) -> list[tuple[str, HeadstockError | None]]:
        if not self.is_quick:
            return []
        done, self.reading = self.reading, []
        bad = AdapterError("It is damaged.", remedy="Repair it.")
        return [(adapter, bad if adapter in self.broken else None) for adapter in done]

    def drop(self, adapter: str) -> None:
        self.kept.discard(adapter)
        self.reading = [reading for reading in self.reading if reading != adapter]

    def close(self) -> None:
        self.kept.clear()


class Client:
    """Talks to an engine on ``runner`` and checks every reply."""

    def __init__(self, runner: NullRunner | None = None, **settings: object) -> None:
        self.runner = runner or NullRunner()
        names = ("prefix_cache", "checkpoint_tokens")
        cache = {name: settings.pop(name) for name in names if name in settings}
        self.compiler = ToyCompiler(
            self.runner.limits.vocab_size, is_quick=bool(settings.pop("is_quick", False))
        )
        self.shelf = ToyShelf(is_quick=bool(settings.pop("reads_at_once", True)))
        self.now_s = 0.0
        self.engine: Engine = build_engine(
            self.runner,
            SchedulerSettings(**settings),
            CacheSettings(**cache),
            compiler=self.compiler,
            shelf=self.shelf if self.runner.limits.num_adapters else None,
            clock=self.clock,
        )
        self.records: dict[tuple[str, int], Record] = {}
        self.others: list[FromEngine] = []

    def clock(self) -> float:
        self.now_s += 0.001
        return self.now_s

    # What it says.

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        max_new_tokens: int | None = 4,
        *,
        attempt: int = 0,
        output_ids: list[int] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        min_new_tokens: int = 0,
        **fields: object,
    ) -> Record:
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            sampling_seed=seed,
        )
        submit = Submit(
            id=request_id,
            attempt=attempt,
            prompt_ids=TokenIds(prompt),
            output_ids=output_ids or [],
            params=params,
            **fields,
        )
        record = Record(submit, list(submit.output_ids))
        self.records[request_id, attempt] = record
        self.say(submit)
        return record

    def abort(self, request_id: str) -> None:
        self.say(Abort(id=request_id))

    def cut(self, request_id: str, keep: int, attempt: int = 0) -> None:
        record = self.records.get((request_id, attempt))
        if record is not None and record.ended is None:
            record.kept = keep
        self.say(Cut(id=request_id, attempt=attempt, keep=keep, matched="stop"))

    def load(self, adapter: str) -> None:
        self.say(LoadAdapter(call=2, adapter=adapter, path=f"/{adapter}"))

    def unload(self, adapter: str) -> None:
        self.say(UnloadAdapter(call=3, adapter=adapter))

    def flush(self) -> None:
        self.say(FlushCache(call=1))

    def say(self, *messages: ToEngine) -> None:
        self.hear(self.engine.receive(messages))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            if self.engine.is_preparing:
                self.compiler.work()
                self.hear(self.engine.take_prepared())
            try:
                replies = self.engine.step()
            except RunnerError as failure:
                if not self.runner.has_just_failed:
                    raise
                for record in self.records.values():
                    record.saw_explosion |= record.ended is None
                replies = self.engine.recover(failure)
            self.hear(replies)

    def finish(self, limit: int = 2000) -> None:
        """Step until there is no work; fails when that takes too long."""
        for _ in range(limit):
            if not self.engine.has_work and not self.engine.is_preparing:
                return
            self.step()
        raise AssertionError(f"still at work after {limit} steps")

    # What it hears.

    def hear(self, replies: list[FromEngine]) -> None:
        for reply in replies:
            if isinstance(reply, Tokens):
                self._hear_tokens(reply)
            elif isinstance(reply, Vector):
                record = self.records[reply.id, reply.attempt]
                assert record.ended is None, f"a vector of {reply.id} after its end"
                assert record.vector is None, f"{reply.id} has two vectors"
                record.vector = reply.values
            elif isinstance(reply, Ended):
                record = self.records[reply.id, reply.attempt]
                assert record.ended is None, f"{reply.id} ended twice"
                record.ended = reply
            else:
                self.others.append(reply)

    def _hear_tokens(self, tokens: Tokens) -> None:
        begin = 0
        columns = zip(tokens.ids, tokens.attempts, tokens.offsets, tokens.counts, strict=True)
        for request_id, attempt, offset, count in columns:
            record = self.records[request_id, attempt]
            assert record.ended is None, f"tokens of {request_id} after its end"
            assert offset == len(record.token_ids), f"a gap in the tokens of {request_id}"
            record.token_ids += tokens.token_ids[begin : begin + count]
            begin += count
        assert begin == len(tokens.token_ids)
        for logprobs in tokens.logprobs:
            attempt = tokens.attempts[tokens.ids.index(logprobs.id)]
            self.records[logprobs.id, attempt].logprobs.append(logprobs)

    # What it expects.

    def expected(self, record: Record) -> list[int]:
        """Return what ``record`` must yield when it is not ended: a function of the prompt."""
        submit, limits = record.submit, self.runner.limits
        held = self.engine.scheduler.cache.max_tokens
        room = limits.max_length if held is None else min(limits.max_length, held + 1)
        fits = room - len(submit.prompt_ids)
        wanted = submit.params.max_new_tokens
        drawable = None
        if submit.grammar is not None and submit.grammar.text == "bad":
            return []
        if submit.grammar is not None:
            grammar = ToyGrammar.parse(submit.grammar.text, limits.vocab_size)
            drawable = partial(grammar.drawable, stop_ids=submit.stop_ids)
        return expected_outputs(
            submit.prompt_ids,
            max_outputs=fits if wanted is None else min(wanted, fits),
            vocab_size=limits.vocab_size,
            stop_ids=submit.stop_ids,
            seed=submit.params.sampling_seed or 0,
            min_outputs=submit.params.min_new_tokens,
            drawable=drawable,
            adapter=submit.adapter,
        )

    def check_record(self, record: Record) -> None:
        """Assert that what came back is what the naive model says, as far as it came."""
        if record.submit.pool:
            self._check_vector(record)
            return
        expected = self.expected(record)
        assert record.token_ids == expected[: len(record.token_ids)], "other tokens than alone"
        ended = record.ended
        if ended is None:
            return
        kind = ended.reason.kind
        if kind in ("stop", "length") and record.kept is None:
            assert record.token_ids == expected, f"{record.submit.id} lost tokens"
        if kind == "stop" and record.kept is not None and ended.reason.matched == "stop":
            assert ended.num_outputs == min(record.kept, len(record.token_ids))
        else:
            assert ended.num_outputs == len(record.token_ids)

    def _check_vector(self, record: Record) -> None:
        ended = record.ended
        assert record.token_ids == []
        if ended is not None and ended.reason.kind == "stop" and record.kept is None:
            assert record.vector is not None
            whole = expected_vector(record.submit.prompt_ids, 0, record.submit.adapter)
            assert record.vector[:4] == whole[:4], "another vector than alone"
        elif record.kept is None:
            assert record.vector is None

    def check_idle(self) -> None:
        """Assert that every request has ended and every page is free or cached."""
        self.engine.scheduler.check()
        assert all(record.ended is not None for record in self.records.values())
        state = self.engine.state()
        assert state.running == state.waiting == 0
        assert state.free_pages + state.cached_pages == state.total_pages, "pages leaked"
