"""The process that compiles: ``python -m headstock.structured.process``, orders on its stdin.

It holds the vocabulary and one thread, and forks for each grammar. The fork has limits on time and
memory and dies at them; nothing that a grammar does reaches this process or the engine. It ends
when its stdin does.
"""

from __future__ import annotations

import math
import os
import resource
import selectors
import signal
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from headstock.errors import RequestError
from headstock.structured.messages import (
    Compile,
    Compiled,
    CompileLimits,
    Frames,
    Setup,
    decode_order,
    encode,
    frame,
)
from headstock.structured.provider import GrammarProvider, Vocabulary, open_provider

_READ_BYTES = 1 << 20
GIVE_WAY_S = 0.1
"""A grammar that takes longer to compile leaves the processor to others. Seconds."""
GIVE_WAY = 10
"""What its niceness grows by then: a tenth of a core beside one that computes."""
_NO_MEMORY = 2
"""Exit code of a fork that ran out of memory."""


@dataclass(slots=True)
class _Fork:
    """A grammar being compiled."""

    call: int
    pid: int
    pipe: int
    way_s: float
    deadline_s: float
    gives_way: bool = False
    is_late: bool = False
    read: bytearray = field(default_factory=bytearray)


class CompileServer:
    """Takes orders, forks for each, and answers.

    Args:
        provider: Compiles.
        limits: For each fork.
        orders: Those that came with the first read.
    """

    def __init__(self, provider: GrammarProvider, limits: CompileLimits) -> None:
        self._provider = provider
        self._limits = limits
        self._waiting: deque[Compile] = deque()
        self._forks: dict[int, _Fork] = {}
        self._selector = selectors.DefaultSelector()
        self._frames = Frames()

    def serve(self, orders: int, answers: int, first: list[bytes], frames: Frames) -> None:
        """Serve until ``orders`` ends.

        Args:
            orders: File descriptor to read from.
            answers: File descriptor to write to.
            first: Frames that were read already.
            frames: What parts the stream.
        """
        self._take(first)
        self._selector.register(orders, selectors.EVENT_READ)
        while True:
            self._fork_waiting()
            for key, _ in self._selector.select(self._patience_s()):
                if key.fd != orders:
                    self._read(key.fd, answers)
                    continue
                data = os.read(orders, _READ_BYTES)
                if not data:
                    self._kill_all()
                    return
                self._take(frames.feed(data))
            self._look_after()

    def _take(self, bodies: list[bytes]) -> None:
        for body in bodies:
            order = decode_order(body)
            assert isinstance(order, Compile), "the vocabulary comes once"
            self._waiting.append(order)

    def _patience_s(self) -> float | None:
        """Return when a fork is to give way or is late, or None while there is none. Seconds."""
        if not self._forks:
            return None
        first = min(f.deadline_s if f.gives_way else f.way_s for f in self._forks.values())
        return max(0.0, first - time.monotonic()) + 0.01

    def _fork_waiting(self) -> None:
        while self._waiting and len(self._forks) < self._limits.num_workers:
            order = self._waiting.popleft()
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                _compile_and_exit(self._provider, order, write, self._limits)
            os.close(write)
            now_s = time.monotonic()
            deadline_s = now_s + self._limits.timeout_s
            self._forks[read] = _Fork(order.call, pid, read, now_s + GIVE_WAY_S, deadline_s)
            self._selector.register(read, selectors.EVENT_READ)

    def _read(self, pipe: int, answers: int) -> None:
        fork = self._forks[pipe]
        data = os.read(pipe, _READ_BYTES)
        if data:
            fork.read += data
            return
        self._selector.unregister(pipe)
        os.close(pipe)
        del self._forks[pipe]
        _, status = os.waitpid(fork.pid, 0)
        answer = bytes(fork.read)
        if status != 0 or not answer:
            answer = encode(self._obituary(fork, status))
        _write(answers, frame(answer))

    def _look_after(self) -> None:
        """Have forks that take long give way to others, and kill those that are late."""
        now_s = time.monotonic()
        for fork in self._forks.values():
            if now_s >= fork.way_s and not fork.gives_way:
                fork.gives_way = True
                least = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(os.PRIO_PROCESS, fork.pid, min(19, least + GIVE_WAY))
            if now_s >= fork.deadline_s and not fork.is_late:
                fork.is_late = True
                os.kill(fork.pid, signal.SIGKILL)  # its pipe ends, and that is read

    def _kill_all(self) -> None:
        for fork in self._forks.values():
            os.kill(fork.pid, signal.SIGKILL)
            os.waitpid(fork.pid, 0)

    def _obituary(self, fork: _Fork, status: int) -> Compiled:
        """Return the answer for a fork that died."""
        limits = self._limits
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if fork.is_late or number in (signal.SIGXCPU, signal.SIGKILL):
            what = f"The grammar takes more than {limits.timeout_s:g} s to compile."
        elif number == signal.SIGABRT or os.waitstatus_to_exitcode(status) == _NO_MEMORY:
            what = f"The grammar takes more than {limits.memory_bytes >> 20} MiB to compile."
        else:
            what = "The compiler ended while it compiled the grammar."
        return Compiled(
            fork.call, problem=what, remedy="Use a smaller one.", code="grammar_too_complex"
        )


def _compile_and_exit(
    provider: GrammarProvider, order: Compile, pipe: int, limits: CompileLimits
) -> None:
    """Compile under ``limits`` and write what came of it. In the fork; does not return."""
    code = 1
    try:
        before = _memory_bytes()
        _limit(before[0], limits)
        answer = _compile(provider, order, before[1])
        _write(pipe, encode(answer))
        code = 0
    except MemoryError:
        code = _NO_MEMORY
    except Exception:  # noqa: BLE001 - the fork's boundary: the answer says that it ended
        traceback.print_exc()
    finally:
        os._exit(code)


def _compile(provider: GrammarProvider, order: Compile, resident_before: int) -> Compiled:
    try:
        text = provider.translate(order.grammar)
        kept = provider.compile(text)
        provider.masks([kept.matcher()])
    except RequestError as error:
        return Compiled(order.call, problem=error.problem, remedy=error.remedy, code=error.code)
    size = max(0, _memory_bytes()[1] - resident_before)
    return Compiled(order.call, text=text, size_bytes=size)


def _limit(address_space: int, limits: CompileLimits) -> None:
    seconds = math.ceil(limits.timeout_s)
    signal.alarm(seconds + 1)  # should the process that watches it be gone
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    most = address_space + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _memory_bytes() -> tuple[int, int]:
    """Return this process's address space, and its resident memory that is no file's. Bytes."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmSize", "RssAnon"):
            found[name] = int(value.split()[0]) * 1024
    return found["VmSize"], found["RssAnon"]


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main() -> int:
    """Read the vocabulary, then serve."""
    orders, answers = sys.stdin.fileno(), sys.stdout.fileno()
    frames = Frames()
    bodies: list[bytes] = []
    while not bodies:
        data = os.read(orders, _READ_BYTES)
        if not data:
            return 0
        bodies = frames.feed(data)
    setup = decode_order(bodies[0])
    assert isinstance(setup, Setup), "the vocabulary comes first"
    vocabulary = Vocabulary(setup.tokens, setup.special_ids, setup.eos_ids)
    provider = open_provider(setup.place, vocabulary)
    CompileServer(provider, setup.limits).serve(orders, answers, bodies[1:], frames)
    return 0


if __name__ == "__main__":
    sys.exit(main())
