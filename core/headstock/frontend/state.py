"""What a program works on: ``s``. Adding to it records; reading it sends and waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, Literal, cast

from headstock.errors import did_you_mean
from headstock.frontend import reading
from headstock.frontend.api import assistant, role_begin, role_end, system, user
from headstock.frontend.compile import Compiler
from headstock.frontend.errors import ProgramError, caller
from headstock.frontend.expressions import to_expression
from headstock.frontend.feed import Feed
from headstock.frontend.run import Run
from headstock.frontend.segments import Item, Segment
from headstock.frontend.slots import Slot
from headstock.frontend.trace import Trace
from headstock.programs import Branch, Fork, Join, Scope
from headstock.programs.graph import MAIN

Found = Slot | list["Found"]
JoinMode = Literal["gather_variable", "concate_and_append", "gather", "concatenate"]
_MODES: dict[str, Literal["gather", "concatenate"]] = {
    "gather_variable": "gather",
    "gather": "gather",
    "concate_and_append": "concatenate",
    "concatenate": "concatenate",
}


class ProgramState:
    """A conversation or a text that a program adds to, and its variables.

    Attributes:
        ret_value: What the program's body returned.
    """

    def __init__(self, run: Run, name: str = MAIN) -> None:
        self._run = run
        self._name = name
        self._compiler = Compiler(name, run)
        self._slots: dict[str, Found] = {}
        self._own: dict[str, None] = {}
        self._num_forks = 0
        self._feed: Feed[Item] = Feed()
        self.ret_value: Any = None
        self.failure: BaseException | None = None
        """What the body raised, where no caller waited for it."""

    # Adding

    def __iadd__(self, expression: Any) -> ProgramState:
        self._add(expression)
        return self

    def append(self, expression: Any) -> ProgramState:
        """Add an expression, as ``+=`` does."""
        self._add(expression)
        return self

    def system(self, *parts: Any) -> Any:
        """Add a turn of the system; without parts, a context for what is added meanwhile."""
        return self._turn("system", system, parts)

    def user(self, *parts: Any) -> Any:
        """Add a turn of the user; without parts, a context for what is added meanwhile."""
        return self._turn("user", user, parts)

    def assistant(self, *parts: Any) -> Any:
        """Add a turn of the assistant; without parts, a context for what is added meanwhile."""
        return self._turn("assistant", assistant, parts)

    @contextlib.contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """Keep in a variable what is added in the block."""
        self._scope(name, is_end=False)
        yield
        self._scope(name, is_end=True)

    def fork(self, size: int = 1) -> ForkGroup:
        """Return states that start as this one is now, and run at the same time.

        What they have in common is computed once.
        """
        line = caller()
        if size < 1:
            raise ProgramError(f"fork({size}) makes no state.", remedy="Fork 1 or more.", line=line)
        for step, where, slot in self._compiler.settle(line):
            self._push(step, where, slot)
        names = [f"{self._name}.{self._num_forks + index}" for index in range(size)]
        self._num_forks += size
        self._push(Fork(state=self._name, into=names), line, None)
        return ForkGroup([self._child(name) for name in names], self)

    @contextlib.contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """Yield one fork, which is joined when the block ends."""
        forks = self.fork(1)
        yield forks[0]
        forks.join()

    # Reading

    def __getitem__(self, name: str) -> Any:
        """Return the value of a variable; waits for it.

        Raises:
            ProgramError: Its step failed, or there is no such variable.
        """
        self._run.flush()
        self._run.hub.check_outside()
        found = self._slots.get(name)
        if found is not None:
            return _read(found, lambda slot: slot.done.result())
        return self._loose(name, self._branch())

    async def get(self, name: str) -> Any:
        """Return the value of a variable, from a coroutine.

        Raises:
            ProgramError: Its step failed, or there is no such variable.
        """
        self._run.flush()
        found = self._slots.get(name)
        if found is None:
            return self._loose(name, await self._async_branch())
        for slot in _slots_of(found):
            await asyncio.wrap_future(slot.done)
        return _read(found, lambda slot: slot.done.result())

    def __contains__(self, name: str) -> bool:
        if name in self._slots:
            return True
        self._run.flush()
        self._run.hub.check_outside()
        return name in self._branch().variables

    def get_var(self, name: str) -> Any:
        """Return the value of a variable, as ``s[name]``."""
        return self[name]

    def get_meta_info(self, name: str) -> dict[str, Any]:
        """Return what a gen or select took, as ``meta_info`` of ``/generate`` has it."""
        self._run.flush()
        self._run.hub.check_outside()
        found = self._slots.get(name)
        if not isinstance(found, Slot):
            raise self._unknown(name, self._slots)
        return reading.meta_info(found.done.result())

    def text(self) -> str:
        """Return all of it: the text, or the turns with their roles; waits for all steps."""
        self.sync()
        return reading.flat(self._branch())

    async def async_text(self) -> str:
        """Return all of it, from a coroutine."""
        self._run.flush()
        return reading.flat(await self._async_branch())

    def messages(self) -> list[dict[str, Any]]:
        """Return its turns as ``role`` and ``content``; waits for all steps."""
        self.sync()
        return reading.messages(self._branch())

    def text_iter(self, var_name: str | None = None) -> Generator[str]:
        """Yield text as it comes: of a variable, or of the whole state."""
        self._run.flush()
        self._run.hub.check_outside()
        return self._guarded(reading.follow(self._name, self._feed, var_name))

    def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """Yield text as it comes, from a coroutine.

        Args:
            var_name: Of a variable; None: of the whole state.
            return_meta_data: Yield pairs of text and ``meta_info``, which is {} until the end.
        """
        self._run.flush()
        pieces = self._async_guarded(reading.async_follow(self._name, self._feed, var_name))
        if not return_meta_data:
            return pieces
        if var_name is None:
            raise ProgramError(
                "return_meta_data needs the name of a variable.", remedy="Give it.", line=caller()
            )
        return reading.with_meta(pieces, lambda: self._slots[var_name])

    def start(self) -> None:
        """Send what was added, without waiting for it."""
        self._run.flush()

    def sync(self) -> None:
        """Wait for all that was added to this state.

        Raises:
            ProgramError: A step failed.
        """
        self._run.flush()
        self._run.hub.check_outside()
        self._branch()

    def error(self) -> BaseException | None:
        """Wait, and return what went wrong, or None."""
        try:
            self._run.finish()
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            return self.failure or error
        return self.failure

    def trace(self) -> Trace:
        """Return what the program did so far, and when."""
        return self._run.trace()

    def cancel(self) -> None:
        """End what is under way."""
        self._run.cancel()

    # Inside

    def end(self) -> None:
        """Note that the body has ended: nothing more is added."""
        self._run.flush()
        self._feed.end()

    def abandon(self) -> None:
        """Note that the body has failed: what it said and did not send is not sent."""
        self._run.abandon()
        self._feed.end()

    def _add(self, expression: Any) -> None:
        if expression is self:
            return
        line = caller()
        for step, where, slot in self._compiler.compile(to_expression(expression), line):
            self._push(step, where, slot)
        for name in self._compiler.loose:
            self._slots.pop(name, None)
            self._own[name] = None

    def _push(self, step: Any, line: Any, slot: Slot | None) -> None:
        item = self._run.push(step, line, slot)
        if slot is not None:
            self._slots[slot.name] = slot
            self._own[slot.name] = None
            self._compiler.loose.pop(slot.name, None)
        self._feed.put(item)

    def _turn(self, role: str, make: Callable[..., Any], parts: tuple[Any, ...]) -> Any:
        if parts:
            self._add(make(*parts))
            return None
        return self._context(role)

    @contextlib.contextmanager
    def _context(self, role: str) -> Iterator[None]:
        self._add(role_begin(role))
        yield
        self._add(role_end(role))

    def _scope(self, name: str, *, is_end: bool) -> None:
        line = caller()
        for step, where, slot in self._compiler.settle(line):
            self._push(step, where, slot)
        self._push(Scope(state=self._name, name=name, is_end=is_end), line, None)
        if is_end:
            self._slots.pop(name, None)
            self._own[name] = None

    def _child(self, name: str) -> ProgramState:
        child = ProgramState(self._run, name)
        child._slots = dict(self._slots)
        child._compiler.place = self._compiler.place.copy()
        child._compiler.loose = dict(self._compiler.loose)
        return child

    def _join(self, children: list[ProgramState], mode: str) -> None:
        line = caller()
        known = _MODES.get(mode)
        if known is None:
            raise ProgramError(
                f"mode is {mode!r}.", remedy=f"Use one of {', '.join(_MODES)}.", line=line
            )
        for child in children:
            child._feed.end()
        names = [child._name for child in children]
        self._push(Join(state=self._name, states=names, mode=known), line, None)
        if known == "concatenate":
            self._compiler.place = children[-1]._compiler.place.copy()
        for name in dict.fromkeys(name for child in children for name in child._own):
            setters = [child for child in children if name in child._own]
            found = [child._slots.get(name) for child in setters]
            self._own[name] = None
            if None in found:
                self._slots.pop(name, None)
            else:
                self._slots[name] = cast("list[Found]", found)

    def _guarded(self, pieces: Generator[str]) -> Generator[str]:
        """Raise what the body raised, once all that it sent has come."""
        yield from pieces
        if self.failure is not None:
            raise self.failure

    async def _async_guarded(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        async for piece in pieces:
            yield piece
        if self.failure is not None:
            raise self.failure

    def _branch(self) -> Branch:
        tail = self._run.tail(self._name)
        return tail.done.result()[self._name] if isinstance(tail, Segment) else tail

    async def _async_branch(self) -> Branch:
        tail = self._run.tail(self._name)
        if isinstance(tail, Segment):
            return (await asyncio.wrap_future(tail.done))[self._name]
        return tail

    def _loose(self, name: str, branch: Branch) -> Any:
        """Return a variable that is known only when all that was added has run."""
        if name not in branch.variables:
            raise self._unknown(name, {**self._slots, **branch.variables})
        value = branch.variables[name]
        slot = self._compiler.loose.get(name)
        return value if slot is None else slot.read_value(value)

    def _unknown(self, name: str, known: dict[str, Any]) -> ProgramError:
        return ProgramError(
            f"There is no variable {name!r} in this state.{did_you_mean(name, known)}",
            remedy="Generate it first, under a condition that holds.",
            line=caller(),
            code="not_generated",
        )


class ForkGroup:
    """States that were forked together."""

    def __init__(self, states: list[ProgramState], parent: ProgramState) -> None:
        self.states = states
        self._parent = parent

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __getitem__(self, key: int | str) -> Any:
        """Return one state, or the values that a variable has in each."""
        if isinstance(key, int):
            return self.states[key]
        return [state[key] for state in self.states]

    def __setitem__(self, key: int, state: ProgramState) -> None:
        """Make ``forks[0] += …`` valid."""
        if self.states[key] is not state:
            raise ProgramError(
                "A fork cannot be replaced by another state.",
                remedy="Add to it with +=.",
                line=caller(),
            )

    def __iadd__(self, other: Any) -> ForkGroup:
        """Add to each: an expression, a list with one for each, or a function of the state."""
        items = other if isinstance(other, list) else [other] * len(self.states)
        if len(items) != len(self.states):
            raise ProgramError(
                f"{len(items)} expressions are added to {len(self.states)} states.",
                remedy="Give one for all, or one each.",
                line=caller(),
            )
        for state, item in zip(self.states, items, strict=True):
            state += item(state) if callable(item) else item
        return self

    def join(self, mode: JoinMode = "gather_variable") -> None:
        """Have the parent wait for all of them, and take over what they found.

        Args:
            mode: ``gather_variable``: new variables become lists. ``concate_and_append``: what
                they added is added to the parent too, one after another.
        """
        self._parent._join(self.states, mode)


def _slots_of(found: Found) -> Iterator[Slot]:
    if isinstance(found, Slot):
        yield found
    else:
        for item in found:
            yield from _slots_of(item)


def _read(found: Found, result: Callable[[Slot], Any]) -> Any:
    if isinstance(found, Slot):
        return found.read(result(found))
    return [_read(item, result) for item in found]


def all_done(futures: list[Future[Any]]) -> Future[None]:
    """Return what is done when all ``futures`` are; it fails as the first that failed."""
    whole: Future[None] = Future()
    left = len(futures)
    lock = threading.Lock()  # those that are done call back here, the others in the hub
    if not left:
        whole.set_result(None)

    def count(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        errors = [error for f in futures if (error := f.exception()) is not None]
        if errors:
            whole.set_exception(errors[0])
        else:
            whole.set_result(None)

    for future in futures:
        future.add_done_callback(count)
    return whole
