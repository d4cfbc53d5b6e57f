"""``@function``: makes a program of a Python function whose first parameter is the state."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, overload

from headstock.frontend.api import SAMPLING, SHORT, sampling
from headstock.frontend.backends.choose import BackendLike, backend_of
from headstock.frontend.errors import ProgramError, caller
from headstock.frontend.hub import hub
from headstock.frontend.progress import progress
from headstock.frontend.run import Run
from headstock.frontend.state import ProgramState, all_done

Arguments = Mapping[str, Any] | Sequence[Any]
_LOGPROBS = frozenset({"return_logprob", "top_logprobs_num", "logprob_start_len"})
_OF_RUN = _LOGPROBS | {"return_text_in_logprobs", "use_thread"}
"""Arguments of SGLang's ``run`` beside sampling parameters. The last two change nothing here: log
probabilities always have their text, and whether a body needs a thread is known."""
IN_FLIGHT = 256
"""Programs of a batch that are under way at once, unless the caller says."""


class ProgramFunction:
    """A program.

    Args:
        func: Its body; plain or ``async``. The first parameter is the state.
        bound: Arguments that are given already.
    """

    def __init__(self, func: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> None:
        parameters = list(inspect.signature(func).parameters)
        if not parameters:
            raise ProgramError(
                f"{func.__name__} has no parameter for the state.",
                remedy="Begin it with `def program(s, …)`.",
                line=caller(),
            )
        functools.update_wrapper(self, func)
        self.func = func
        self.name = func.__name__
        self._bound = dict(bound or {})
        self._parameters = frozenset(parameters[1:])
        self._is_async = inspect.iscoroutinefunction(func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; with a state as first argument, run its body there, as a part of another."""
        if args and isinstance(args[0], ProgramState):
            return self.func(*args, **{**self._bound, **kwargs})
        return self.run(*args, **kwargs)

    def bind(self, **kwargs: Any) -> ProgramFunction:
        """Return the program with some arguments given."""
        return ProgramFunction(self.func, {**self._bound, **kwargs})

    def run(
        self,
        *args: Any,
        stream: bool = False,
        backend: BackendLike | None = None,
        **kwargs: Any,
    ) -> ProgramState:
        """Run it to its end.

        Args:
            args: Of the body.
            stream: Return at once; ``text_iter`` of the state follows.
            backend: Runs it; None: the default one.
            kwargs: Of the body; sampling parameters that the body does not have as its own are
                the defaults of its gens.

        Raises:
            ProgramError: A step was at fault or could not be served; it names the line.
        """
        state, kwargs = self._begin(backend, kwargs, is_streamed=stream)
        if self._is_async:
            body = self._caught_async_body if stream else self._async_body
            future = state._run.hub.submit(body(state, args, kwargs))
            return state if stream else _await_body(state, future)
        if stream:
            threading.Thread(
                target=self._caught_body, args=(state, args, kwargs), daemon=True, name=self.name
            ).start()
            return state
        try:
            self._body(state, args, kwargs)
            state._run.finish()
        except BaseException:
            state.cancel()
            raise
        return state

    async def run_async(
        self, *args: Any, backend: BackendLike | None = None, **kwargs: Any
    ) -> ProgramState:
        """As :meth:`run`, from a coroutine; an ``async`` body runs in the caller's event loop."""
        state, kwargs = self._begin(backend, kwargs, is_streamed=False)
        try:
            if self._is_async:
                await self._async_body(state, args, kwargs)
            else:
                await asyncio.to_thread(self._body, state, args, kwargs)
            await asyncio.wrap_future(all_done(state._run.ends()))
        except BaseException:
            state.cancel()
            raise
        return state

    def stream_async(
        self, *args: Any, backend: BackendLike | None = None, **kwargs: Any
    ) -> ProgramState:
        """Begin to run it and return at once; ``text_async_iter`` of the state follows."""
        return self.run(*args, stream=True, backend=backend, **kwargs)

    def run_batch(
        self,
        batch: Sequence[Arguments],
        *,
        backend: BackendLike | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run it for many arguments at the same time.

        A program that fails does not end the others: its state raises when it is read, and
        ``state.error()`` says why.

        Args:
            batch: Keyword arguments, or positional ones, of each run.
            backend: Runs them; None: the default one.
            num_threads: Programs under way at once, "auto" for 256. A thread is only needed while
                a body that is not ``async`` runs.
            progress_bar: Show how many are done.
            generator_style: Return an iterator over the states, in order, as they end.
            kwargs: Sampling parameters for all.

        Returns:
            A state for each, in order.
        """
        count = IN_FLIGHT if num_threads == "auto" else max(1, int(num_threads))
        states = self._batch(list(batch), backend, count, kwargs, progress_bar)
        return states if generator_style else list(states)

    async def run_batch_async(
        self,
        batch: Sequence[Arguments],
        *,
        backend: BackendLike | None = None,
        num_threads: int | str = "auto",
        **kwargs: Any,
    ) -> list[ProgramState]:
        """As :meth:`run_batch`, from a coroutine."""
        count = IN_FLIGHT if num_threads == "auto" else max(1, int(num_threads))
        limit = asyncio.Semaphore(count)

        async def one(arguments: Arguments) -> ProgramState:
            args, named = _spread(arguments)
            async with limit:
                state, rest = self._begin(backend, {**kwargs, **named}, is_streamed=False)
                try:
                    if self._is_async:
                        await self._async_body(state, args, rest)
                    else:
                        await asyncio.to_thread(self._body, state, args, rest)
                    await asyncio.wrap_future(all_done(state._run.ends()))
                except Exception as error:  # noqa: BLE001 - the state says so when it is read
                    state.failure = error
                return state

        return list(await asyncio.gather(*[one(arguments) for arguments in batch]))

    # Inside

    def _begin(
        self, backend: BackendLike | None, kwargs: Mapping[str, Any], *, is_streamed: bool
    ) -> tuple[ProgramState, dict[str, Any]]:
        given = {**self._bound, **kwargs}
        others: dict[str, Any] = {}
        for name in _OF_RUN - self._parameters:
            value = given.pop(name, None)
            if name in _LOGPROBS and value is not None:
                others[name] = value
        own = {
            name: value
            for name, value in given.items()
            if name in self._parameters or (name not in SHORT and name not in SAMPLING)
        }
        rest = {name: value for name, value in given.items() if name not in own}
        run = Run(
            self.name, backend_of(backend), hub(), sampling(rest), is_streamed=is_streamed, **others
        )
        return ProgramState(run), own

    def _body(self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            state.ret_value = self.func(state, *args, **kwargs)
        except BaseException:
            state.abandon()
            raise
        state.end()

    def _caught_body(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Run the body where no caller waits for it: what it raises is the state's error."""
        try:
            self._body(state, args, kwargs)
        except Exception as error:  # noqa: BLE001 - the state says so when it is read
            state.failure = error

    async def _async_body(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        try:
            found: Awaitable[Any] = self.func(state, *args, **kwargs)
            state.ret_value = await found
        except BaseException:
            state.abandon()
            raise
        state.end()

    async def _caught_async_body(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """As :meth:`_caught_body`, for an ``async`` one."""
        try:
            await self._async_body(state, args, kwargs)
        except Exception as error:  # noqa: BLE001 - the state says so when it is read
            state.failure = error

    def _batch(
        self,
        batch: list[Arguments],
        backend: BackendLike | None,
        count: int,
        kwargs: Mapping[str, Any],
        progress_bar: bool,
    ) -> Iterator[ProgramState]:
        places = threading.BoundedSemaphore(count)
        loop = hub()
        with (
            contextlib.ExitStack() as stack,
            ThreadPoolExecutor(min(count, 64), thread_name_prefix="headstock-body") as pool,
        ):
            advance = stack.enter_context(progress(self.name, len(batch), is_shown=progress_bar))
            begun: list[tuple[ProgramState, Future[None]]] = []
            shown = 0

            def start(arguments: Arguments) -> tuple[ProgramState, Future[None]]:
                args, named = _spread(arguments)
                state, rest = self._begin(backend, {**kwargs, **named}, is_streamed=False)
                whole: Future[None] = Future()

                def over(_: Future[Any]) -> None:
                    places.release()
                    advance(1)
                    whole.set_result(None)

                def ended(_: Future[Any]) -> None:
                    all_done(state._run.ends()).add_done_callback(over)

                if self._is_async:
                    body = loop.submit(self._caught_async_body(state, args, rest))
                else:
                    body = pool.submit(self._caught_body, state, args, rest)
                body.add_done_callback(ended)
                return state, whole

            try:
                for arguments in batch:
                    while not places.acquire(timeout=0.05):
                        while shown < len(begun) and begun[shown][1].done():
                            yield begun[shown][0]
                            shown += 1
                    begun.append(start(arguments))
                for state, whole in begun[shown:]:
                    whole.result()
                    yield state
            except BaseException:
                for state, _ in begun:
                    state.cancel()
                raise


def _await_body(state: ProgramState, body: Future[None]) -> ProgramState:
    state._run.hub.check_outside()
    try:
        body.result()
        state._run.finish()
    except BaseException:
        body.cancel()
        state.cancel()
        raise
    return state


def _spread(arguments: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(arguments, Mapping):
        return (), dict(arguments)
    if isinstance(arguments, str) or not isinstance(arguments, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        return (arguments,), {}
    return tuple(arguments), {}


@overload
def function(func: Callable[..., Any]) -> ProgramFunction: ...


@overload
def function(
    *, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[..., Any]], ProgramFunction]: ...


def function(
    func: Callable[..., Any] | None = None, *, num_api_spec_tokens: int | None = None
) -> Any:
    """Make a program of a function.

    Args:
        func: Its body.
        num_api_spec_tokens: As SGLang's, which generates ahead to save round trips; a program
            that reads nothing is one request here, so nothing is left to save.
    """
    if func is not None:
        return ProgramFunction(func)
    return ProgramFunction
