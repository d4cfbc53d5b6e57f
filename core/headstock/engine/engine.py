"""The engine: messages in, messages out. Each submitted attempt ends in exactly one ``Ended``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict

from headstock.config.schema import CacheSettings, SchedulerSettings, reserved_places
from headstock.engine.adapters import AdapterDesk, Shelf
from headstock.engine.grammars import Compiler, GrammarDesk
from headstock.engine.guard import GuardedRunner, RunnerError
from headstock.engine.replies import Replies
from headstock.engine.sleep import Pages, SleepDesk
from headstock.engine.upkeep import ProfileDesk, Profiler, WeightDesk, Weights
from headstock.scheduler import Scheduler
from headstock.scheduler.story import PAUSE, STEP
from headstock.wire.messages import (
    Abort,
    AbortAll,
    AskState,
    Cut,
    FlushCache,
    Flushed,
    FromEngine,
    GroupPages,
    LoadAdapter,
    LoadWeights,
    Pause,
    PauseMode,
    ReadWeight,
    Resume,
    Sleep,
    StartProfile,
    State,
    StopProfile,
    Submit,
    ToEngine,
    UnloadAdapter,
    Wake,
)
from headstock.wire.steps import Runner, StepHandle, StepPlan

NO_GRAMMARS = "This engine serves no grammars."
FIXED = "This engine's weights cannot change."
RESIDENT = "This engine cannot give its pages back."


class Engine:
    """Drives a runner: plan, launch, settle.

    Up to ``runner.limits.depth`` steps are in flight: at depth 2 a step is launched before the
    tokens of the one before it are read. A step with masked rows is launched as early; it draws
    once the tokens before it have settled and its masks are made, and until then none follows it.

    Args:
        runner: Runs the plans.
        scheduler: Makes them.
        grammars: Makes masks; serves no grammars when None.
        shelf: Has the LoRA adapters that requests may name; None: there are none.
        weights: The model's, where they can change; or why they cannot.
        profiler: Records steps; None: profiles are refused.
        pages: Their memory, where it can be given back; or why it cannot.
        clock: Monotonic. Seconds.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        grammars: GrammarDesk | None = None,
        *,
        shelf: Shelf | None = None,
        weights: Weights | str = FIXED,
        profiler: Profiler | None = None,
        pages: Pages | str = RESIDENT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self._runner = GuardedRunner(runner)
        self._depth = runner.limits.depth
        self._clock = clock
        self._handles: deque[StepHandle] = deque()
        self._undrawn: StepPlan | None = None
        self._pause: PauseMode | None = None
        self._is_retracting = False
        if grammars is None:
            grammars = GrammarDesk(scheduler, None, why_not=NO_GRAMMARS)
        self._grammars = grammars
        self._adapters = AdapterDesk(scheduler, shelf, self._hand_on)
        why_not, found = (weights, None) if isinstance(weights, str) else ("", weights)
        self._weights = WeightDesk(found, why_not)
        self._profile = ProfileDesk(profiler)
        self._sleep = SleepDesk(pages)
        self._pause_after: PauseMode | None = None
        self._replies = Replies()

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` has something to do."""
        if self._pause is not None:
            return bool(self._handles) or self._is_retracting
        return self.scheduler.has_work

    @property
    def is_preparing(self) -> bool:
        """Whether something goes on beside steps: :meth:`take_prepared` is called soon."""
        is_upkept = self._weights.is_loading or self._profile.is_running or self._sleep.is_pending
        return bool(self._grammars.waiting or self._adapters.calls) or is_upkept

    def take_prepared(self) -> list[FromEngine]:
        """Continue the requests whose grammar and adapter are there; returns what else came.

        Loads a part of other weights, too, ends a profile that has its steps, and falls asleep.
        """
        now_s = self._clock()
        if self._profile.is_running:
            self._profile.look(self.scheduler.counters.steps)
        if self._weights.is_loading and not self.has_work:
            self._load_weights(now_s)
        if self._sleep.is_pending and not self.has_work:
            self._fall_asleep()
        for reply in self._adapters.take_read(now_s):
            self._replies.add(reply)
        self._grammars.admit(now_s)
        self._add_ended()
        return self._replies.take()

    def receive(self, messages: Sequence[ToEngine]) -> list[FromEngine]:
        """Take in ``messages``, in order; returns the replies that need no step."""
        now_s = self._clock()
        for message in messages:
            self._take(message, now_s)
        self._add_ended()
        return self._replies.take()

    def step(self) -> list[FromEngine]:
        """Launch what may be launched, then settle the oldest step in flight.

        Returns:
            Its tokens and the requests that ended; nothing when there is no work.

        Raises:
            RunnerError: The runner raised; call :meth:`recover`.
        """
        handles = self._handles
        while self._pause is None and len(handles) < self._depth and self._undrawn is None:
            plan = self.scheduler.plan(self._clock())
            if plan is None:
                break
            handles.append(self._runner.launch(plan))
            if plan.masked:
                self._undrawn = plan
                self._draw_masked()
        if handles:
            result = self._runner.result(handles.popleft())
            self._replies.add_drawn(self.scheduler.settle(result, self._clock()))
            if self._undrawn is not None:
                self._draw_masked()
        elif self._pause is None:
            assert not self.scheduler.has_work, "requests are left that nothing is planned for"
        if self._is_retracting and not handles:
            self.scheduler.retract_all()
            self._is_retracting = False
        self._add_ended()
        return self._replies.take()

    def recover(self, failure: RunnerError) -> list[FromEngine]:
        """Give up all that is in flight after the runner failed; waiting requests go on.

        Returns:
            The ends of the requests that ran.
        """
        for handle in self._handles:
            self._let_finish(handle)
        self._handles.clear()
        self._undrawn = None
        self.scheduler.fail_all(f"The step that computed the request failed: {failure}")
        self._add_ended()
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
            waiting=scheduler.num_waiting
            + len(self._grammars.waiting)
            + len(self._adapters.waiting),
            free_pages=cache.num_free,
            cached_pages=cache.num_idle,
            total_pages=cache.num_total,
            is_paused=self._pause is not None,
            totals=totals,
            groups=[
                GroupPages(
                    kind=group.facts.kind,
                    held=max(0, group.pool.num_taken - group.num_idle),
                    cached=group.num_idle,
                    total=group.pool.num_total,
                )
                for group in cache.groups
            ],
        )

    def _take(self, message: ToEngine, now_s: float) -> None:
        scheduler = self.scheduler
        match message:
            case Submit() if message.adapter or self._adapters.waiting:
                self._adapters.take(message, now_s)
            case Submit():
                self._hand_on(message, now_s)
            case Cut():
                scheduler.cut(message)
            case Abort():
                self._adapters.abort(message.id)
                self._grammars.abort(message.id)
                scheduler.abort(message.id)
            case AbortAll():
                self._abort_all()
            case FlushCache():
                was_idle = not scheduler.has_work
                freed = scheduler.flush()
                self._replies.add(Flushed(call=message.call, freed_pages=freed, was_idle=was_idle))
            case AskState():
                self._replies.add(self.state(message.call))
            case Pause():
                self._pause_steps(message.mode)
                scheduler.note_blocker(PAUSE, now_s)
                self._replies.add(self.state(message.call))
            case Resume():
                self._resume(now_s)
                self._replies.add(self.state(message.call))
            case LoadAdapter():
                reply = self._adapters.load(message)
                if reply is not None:
                    self._replies.add(reply)
            case UnloadAdapter():
                self._grammars.abort_adapter(message.adapter)
                for reply in self._adapters.unload(message):
                    self._replies.add(reply)
            case LoadWeights():
                self._begin_weights(message, now_s)
            case ReadWeight():
                self._replies.add(self._weights.read(message))
            case Sleep():
                self._begin_sleep(message, now_s)
            case Wake():
                self._wake(message, now_s)
            case StartProfile():
                self._replies.add(self._profile.start(message, scheduler.counters.steps))
            case StopProfile():
                self._replies.add(self._profile.stop(message, scheduler.counters.steps))

    def _begin_weights(self, message: LoadWeights, now_s: float) -> None:
        """Hold all steps back, and have what runs computed anew, until the weights are loaded."""
        refusal = self._weights.begin(message, self.scheduler.num_running)
        if refusal is not None:
            self._replies.add(refusal)
            return
        if message.is_aborting:
            self._abort_all()
        self._hold(now_s, is_held=self._sleep.is_held)

    def _begin_sleep(self, message: Sleep, now_s: float) -> None:
        """Hold all steps back until :meth:`_wake`; pages go once nothing is in flight."""
        was_held = self._is_held
        reply = self._sleep.begin(message)
        if reply is not None:
            self._replies.add(reply)
        elif self._sleep.is_pending:
            self._hold(now_s, is_held=was_held)

    def _fall_asleep(self) -> None:
        cache = self.scheduler.cache
        self.scheduler.flush()
        assert cache.num_free == cache.num_total, "pages are in use while nothing is in flight"
        for reply in self._sleep.fall_asleep():
            self._replies.add(reply)

    def _wake(self, message: Wake, now_s: float) -> None:
        was_held = self._sleep.is_held
        for reply in self._sleep.wake(message):
            self._replies.add(reply)
        if was_held:
            self._let_go(now_s)

    @property
    def _is_held(self) -> bool:
        """Whether steps are held back until something is done, whatever the operator says."""
        return self._weights.is_loading or self._sleep.is_held

    def _hold(self, now_s: float, *, is_held: bool) -> None:
        """Launch no step, and have what runs give its pages back.

        Args:
            now_s: Now.
            is_held: Whether something else has held steps back before.
        """
        if not is_held:
            self._pause_after = self._pause
        self._pause, self._is_retracting = "retract", True
        self.scheduler.note_blocker(PAUSE, now_s)

    def _let_go(self, now_s: float) -> None:
        """Go on as the operator has said, unless something else holds steps back."""
        if self._is_held:
            return
        self._pause = self._pause_after
        self._is_retracting &= self._pause is not None
        if self._pause is None:
            self.scheduler.note_blocker(STEP, now_s)

    def _load_weights(self, now_s: float) -> None:
        """Load a part of the weights; after the last one nothing of the old ones is left."""
        reply = self._weights.advance()
        if reply is None:
            return
        self.scheduler.flush()
        self._let_go(now_s)
        self._replies.add(reply)

    def _abort_all(self) -> None:
        self._adapters.abort_all()
        self._grammars.abort_all()
        self.scheduler.abort_all()

    def _pause_steps(self, mode: PauseMode) -> None:
        """Launch no more steps; those in flight still settle."""
        if mode == "abort":
            self._abort_all()
        if self._is_held:
            self._pause_after = mode
            return
        self._pause = mode
        self._is_retracting = mode == "retract"

    def _resume(self, now_s: float) -> None:
        if self._is_held:
            self._pause_after = None
            return
        self._pause, self._is_retracting = None, False
        self.scheduler.note_blocker(STEP, now_s)

    def _hand_on(self, submit: Submit, now_s: float) -> None:
        """Go on with a request whose adapter, if it has any, is there."""
        if not submit.is_masked:
            self.scheduler.submit(submit, now_s)
        else:
            self._grammars.take(submit, now_s)

    def _draw_masked(self) -> None:
        """Draw from the step launched last if all steps before it have settled."""
        plan = self._undrawn
        if plan is not None and len(self._handles) == 1:
            masks = self._grammars.masks(plan)
            self._undrawn = None
            handle = self._handles.pop()  # should this fail, the step is over
            self._runner.sample(handle, masks)
            self._handles.append(handle)

    def _add_ended(self) -> None:
        ended = self.scheduler.take_ended()
        if ended:
            self._grammars.forget(ended)
            self._replies.add_ended(ended)

    def close(self) -> None:
        """End what compiles grammars and what reads adapters; forget what is cached."""
        self._grammars.close()
        self._adapters.close()
        self.scheduler.cache.close()

    def _let_finish(self, handle: StepHandle) -> None:
        """Wait for a step whose result is not wanted, so that it touches no page any more."""
        try:
            if self._undrawn is not None and self._undrawn.step == handle.step:
                self._runner.sample(handle, self._grammars.anything(self._undrawn))
            self._runner.result(handle)
        except RunnerError:
            return


def build_engine(
    runner: Runner,
    scheduler: SchedulerSettings,
    cache: CacheSettings,
    *,
    compiler: Compiler | None = None,
    why_no_compiler: str = NO_GRAMMARS,
    shelf: Shelf | None = None,
    weights: Weights | str = FIXED,
    profiler: Profiler | None = None,
    pages: Pages | str = RESIDENT,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Return an engine on ``runner``, as the operator set it.

    Args:
        runner: Runs the plans.
        scheduler: Settings.
        cache: Settings.
        compiler: Compiles grammars; None: requests with grammars are refused.
        why_no_compiler: The reason that they are given then.
        shelf: Has the LoRA adapters that requests may name; None: there are none.
        weights: The model's, where they can change; or why they cannot.
        profiler: Records steps; None: profiles are refused.
        pages: Their memory, where it can be given back; or why it cannot.
        clock: Monotonic. Seconds.
    """
    # Who may wait is for the API process to say, which knows whose requests they are.
    max_queued = scheduler.max_queued_requests + reserved_places(scheduler.max_queued_requests)
    planner = Scheduler(
        runner.limits,
        policy=scheduler.policy,
        max_running=scheduler.max_running_requests,
        max_step_tokens=scheduler.chunked_prefill_size,
        max_queued_requests=max_queued,
        max_queued_tokens=scheduler.max_queued_tokens,
        prefix_cache=cache.prefix_cache,
        checkpoint_tokens=cache.checkpoint_tokens,
    )
    grammars = GrammarDesk(planner, compiler, why_not=why_no_compiler, max_waiting=max_queued)
    return Engine(
        runner,
        planner,
        grammars,
        shelf=shelf,
        weights=weights,
        profiler=profiler,
        pages=pages,
        clock=clock,
    )
