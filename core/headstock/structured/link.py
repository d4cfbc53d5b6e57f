"""The pipe to the process that compiles."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from headstock.requests.grammar import Grammar
from headstock.structured.messages import (
    Compile,
    Compiled,
    Frames,
    Setup,
    decode_compiled,
    encode,
    frame,
)

COMMAND = (sys.executable, "-m", "headstock.structured.process")
END_S = 2.0
_READ_BYTES = 1 << 16


class CompileLink:
    """Starts the process, sends it grammars and hands on its answers.

    Args:
        setup: What the process must know.
        take: Called with each answer, in the link's own thread.
        lose: Called there when the process has ended.
        command: Starts the process.
    """

    def __init__(
        self,
        setup: Setup,
        take: Callable[[Compiled], None],
        lose: Callable[[], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._take = take
        self._lose = lose
        self.is_lost = False
        # In a session of its own: an interrupt from the terminal is for the parent.
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None, "a pipe was asked for"
        self._orders = self._process.stdin
        self._thread = threading.Thread(target=self._listen, name="grammar-answers", daemon=True)
        self._thread.start()
        self._write(encode(setup))

    def send(self, call: int, grammar: Grammar) -> None:
        """Have ``grammar`` compiled.

        Raises:
            OSError: The process is gone.
        """
        self._write(encode(Compile(call, grammar)))

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        self._orders.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(END_S)

    def _write(self, body: bytes) -> None:
        rest = memoryview(frame(body))
        while rest:
            rest = rest[os.write(self._orders.fileno(), rest) :]

    def _listen(self) -> None:
        assert self._process.stdout is not None, "a pipe was asked for"
        frames = Frames()
        with self._process.stdout as answers:
            while data := os.read(answers.fileno(), _READ_BYTES):
                for body in frames.feed(data):
                    self._take(decode_compiled(body))
        self.is_lost = True
        self._process.wait()
        self._lose()
