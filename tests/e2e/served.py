"""`headstock serve` as an operator starts it: a process, its log, its engine's process."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx
import psutil

T = TypeVar("T")
START_S = 90.0
SMALL = ("--cache-tokens", "16384", "--max-model-len", "2048")
"""Enough for every test here, and 0.7 GiB of memory instead of 4."""


def wait_for(look: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """Look until something is there, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)
    return found


class Served:
    """A server process on a free port, ready."""

    def __init__(self, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headstock.cli", "serve", "--port", "0", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
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

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return "".join(self._lines)

    @property
    def engine_pid(self) -> int:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children()
        (pid,) = (c.pid for c in children if "engine_process" in " ".join(c.cmdline()))
        return pid

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def state(self) -> dict[str, Any]:
        """The engine's last heartbeat."""
        return self.get("/server_info").json()["internal_states"][0]

    def idle_state(self) -> dict[str, Any]:
        """Wait until nothing waits or runs, and return a heartbeat from then."""

        def look() -> dict[str, Any] | None:
            info = self.get("/server_info").json()
            (state,) = info["internal_states"]
            is_idle = info["live_requests"] == 0 and state and state["running"] == 0
            return state if is_idle and state["waiting"] == 0 else None

        wait_for(look, 30, "an idle engine")
        time.sleep(1.1)  # a heartbeat a second: the next one is surely of an idle engine
        return wait_for(look, 5, "an idle engine")

    def terminate(self, timeout_s: float = 30.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
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
def served(*flags: str) -> Iterator[Served]:
    """Serve while the block runs."""
    server = Served(*flags)
    try:
        yield server
    finally:
        server.close()
