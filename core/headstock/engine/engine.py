"""The engine: messages in, messages out. Each submitted attempt ends in exactly one ``Ended``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict

from headstock.config.schema import CacheSettings, SchedulerSettings
from headstock.engine.guard import GuardedRunner, RunnerError
from headstock.engine.replies import Replies
from headstock.scheduler import Scheduler
from headstock.wire.messages import (
    Abort,
    AbortAll,
    AskState,
    Cut,
    FlushCache,
    Flushed,
    FromEngine,
    State,
    Submit,
    ToEngine,
)
from headstock.wire.steps import Runner, StepHandle


class Engine:
    """Drives a runner: plan, launch, settle.

    Up to ``runner.limits.depth`` steps are in flight: at depth 2 a step is launched before the
    tokens of the one before it are read.

    Args:
        runner: Runs the plans.
        scheduler: Makes them.
        clock: Monotonic. Seconds.
    """

    def __init__(
        self, runner: Runner, scheduler: Scheduler, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.scheduler = scheduler
        self._runner = GuardedRunner(runner)
        self._depth = runner.limits.depth
        self._clock = clock
        self._handles: deque[StepHandle] = deque()
        self._replies = Replies()

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` has something to do."""
        return self.scheduler.has_work

    def receive(self, messages: Sequence[ToEngine]) -> list[FromEngine]:
        """Take in ``messages``, in order; returns the replies that need no step."""
        now_s = self._clock()
        for message in messages:
            self._take(message, now_s)
        self._replies.add_ended(self.scheduler.take_ended())
        return self._replies.take()

    def step(self) -> list[FromEngine]:
        """Launch what may be launched, then settle the oldest step in flight.

        Returns:
            Its tokens and the requests that ended; nothing when there is no work.

        Raises:
            RunnerError: The runner raised; :meth:`recover` is due.
        """
        handles = self._handles
        while len(handles) < self._depth:
            plan = self.scheduler.plan(self._clock())
            if plan is None:
                break
            handles.append(self._runner.launch(plan))
        if handles:
            result = self._runner.result(handles.popleft())
            self._replies.add_drawn(self.scheduler.settle(result, self._clock()))
        else:
            assert not self.scheduler.has_work, "requests are left that nothing is planned for"
        self._replies.add_ended(self.scheduler.take_ended())
        return self._replies.take()

    def recover(self, failure: RunnerError) -> list[FromEngine]:
        """Give up all that is in flight after the runner failed; waiting requests go on.

        Returns:
            The ends of the requests that ran.
        """
        for handle in self._handles:
            self._let_finish(handle)
        self._handles.clear()
        self.scheduler.fail_all(f"The step that computed the request failed: {failure}")
        self._replies.add_ended(self.scheduler.take_ended())
        return self._replies.take()

    def state(self, call: int = 0) -> State:
        """Return counters and progress."""
        scheduler = self.scheduler
        cache = scheduler.cache
        totals = {name: float(count) for name, count in asdict(scheduler.counters).items()}
        totals["evicted_pages"] = float(cache.num_evicted)
        return State(
            call=call,
            steps=scheduler.counters.steps,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            free_pages=cache.num_free,
            cached_pages=cache.num_idle,
            total_pages=cache.num_total,
            totals=totals,
        )

    def _take(self, message: ToEngine, now_s: float) -> None:
        scheduler = self.scheduler
        match message:
            case Submit():
                scheduler.submit(message, now_s)
            case Cut():
                scheduler.cut(message)
            case Abort():
                scheduler.abort(message.id)
            case AbortAll():
                scheduler.abort_all()
            case FlushCache():
                was_idle = not scheduler.has_work
                freed = scheduler.flush()
                self._replies.add(Flushed(call=message.call, freed_pages=freed, was_idle=was_idle))
            case AskState():
                self._replies.add(self.state(message.call))

    def _let_finish(self, handle: StepHandle) -> None:
        """Wait for a step whose result is not wanted, so that it touches no page any more."""
        try:
            self._runner.result(handle)
        except RunnerError:
            return


def build_engine(
    runner: Runner,
    scheduler: SchedulerSettings,
    cache: CacheSettings,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Return an engine on ``runner``, as the operator set it."""
    return Engine(
        runner,
        Scheduler(
            runner.limits,
            policy=scheduler.policy,
            max_running=scheduler.max_running_requests,
            max_step_tokens=scheduler.chunked_prefill_size,
            max_queued_requests=scheduler.max_queued_requests,
            max_queued_tokens=scheduler.max_queued_tokens,
            prefix_cache=cache.prefix_cache,
            checkpoint_tokens=cache.checkpoint_tokens,
        ),
        clock=clock,
    )
