"""Where a server writes its log and its banner: a stream that cannot take it down."""

from __future__ import annotations

import contextlib
from typing import TextIO


class SteadyStream:
    """Writes to ``stream``; what cannot be written is lost, and counted once writing works again.

    The disk of a log may be full, and what reads a pipe may be gone: both raise in whoever writes,
    which may be the task that all others wait for.

    Args:
        stream: Usually standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._num_lost = 0

    @property
    def encoding(self) -> str:
        """How text becomes bytes."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor, for who asks how wide the terminal is."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write ``text`` if that is possible; returns its length in either case."""
        try:
            if self._num_lost:
                self._stream.write(f"headstock: {self._num_lost} writes to the log were lost.\n")
                self._num_lost = 0
            self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it was closed
            self._num_lost += 1
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
