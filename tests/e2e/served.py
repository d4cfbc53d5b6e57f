"""`headstock serve` as an operator starts it: a process, its log, its engine's process.

The trials of benchmarks/ use it too.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import httpx
import psutil

T = TypeVar("T")
START_S = 180.0
STUCK_S = 60.0
"""A server that shows no progress for so long is stuck, however busy the machine. Seconds."""
SMALL = ("--cache-tokens", "16384", "--max-model-len", "2048")
"""Enough for every test here, and 0.7 GiB of memory instead of 4."""


def command_of(process: psutil.Process) -> str:
    """Return a process's command line; "" where it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # of which a zombie is one kind
        return ""


def wait_for(look: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """Look until something is there, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.02)
    return found


class Served:
    """A server process on a free port of loopback, ready.

    Args:
        flags: Its arguments.
        environment: Variables for it; None: this process's.
        nice: Added to its niceness.
    """

    def __init__(
        self, *flags: str, environment: dict[str, str] | None = None, nice: int = 0
    ) -> None:
        command = [sys.executable, "-m", "headstock.cli", "serve", "--port", "0", *flags]
        begin_s = time.monotonic()
        self.process = subprocess.Popen(
            ["nice", "-n", str(nice), *command] if nice else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = wait_for(self._find_url, START_S, "the banner's URL")[1]
            wait_for(self.is_ready, START_S, "readiness")
        except BaseException:
            self.close()
            raise
        self.start_s = time.monotonic() - begin_s
        """How long the start took. Seconds."""

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return "".join(self._lines)

    @property
    def engine_pid(self) -> int:
        """The engine's process."""
        (pid,) = self.engine_pids()
        return pid

    def engine_pids(self) -> list[int]:
        """The same in a list, which is empty while there is none."""
        children = psutil.Process(self.process.pid).children()
        return [c.pid for c in children if "engine_process" in command_of(c)]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def post(
        self, path: str, *, headers: dict[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        """Post a body, and wait for its answer as long as the engine computes steps."""
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(
                httpx.post, self.url + path, json=body, headers=headers, timeout=None
            )
            seen, moved_s = -1, time.monotonic()
            while not wait([asked], 1.0).done:
                if (steps := self._steps()) != seen:
                    seen, moved_s = steps, time.monotonic()
                if time.monotonic() - moved_s > STUCK_S:
                    self.process.kill()  # so that the request, and its thread, end
                    raise TimeoutError(f"{path}: no step in {STUCK_S:.0f} s:\n{self.log[-2000:]}")
            return asked.result()

    def _steps(self) -> int:
        """Return how many steps the engine has computed; -1: unknown."""
        try:
            states = self.get("/server_info").json().get("internal_states") or [{}]
        except httpx.HTTPError:
            return -1
        return states[0].get("steps", -1)

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def state(self) -> dict[str, Any]:
        """The engine's last heartbeat."""
        return self.get("/server_info").json()["internal_states"][0]

    def idle_state(self, timeout_s: float = 120.0) -> dict[str, Any]:
        """Wait until nothing waits or runs, and return a heartbeat from then."""

        def look() -> dict[str, Any] | None:
            info = self.get("/server_info").json()
            (state,) = info["internal_states"]
            is_idle = info["live_requests"] == 0 and state and state["running"] == 0
            return state if is_idle and state["waiting"] == 0 else None

        wait_for(look, timeout_s, "an idle engine")
        time.sleep(1.2)  # a heartbeat a second: the next one is surely of an idle engine
        return wait_for(look, timeout_s, "an idle engine")

    def lost_pages(self) -> int:
        """Return how many pages are neither free nor cached once nothing runs."""
        state = self.idle_state()
        return state["total_pages"] - state["free_pages"] - state["cached_pages"]

    def terminate(self, timeout_s: float = 60.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)  # extend would show nothing until the end

    def _find_url(self) -> re.Match[str] | None:
        assert self.process.poll() is None, f"the server ended:\n{self.log}"
        return re.search(r"url \.+ (http://\S+)", self.log)


@contextlib.contextmanager
def served(*flags: str, **more: Any) -> Iterator[Served]:
    """Serve while the block runs."""
    server = Served(*flags, **more)
    try:
        yield server
    finally:
        server.close()
