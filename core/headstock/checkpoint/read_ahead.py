"""Reads files ahead of who loads them, several pieces at a time. No torch.

Weights are read through memory maps, one page after another: one request to the disk at a time. So
threads read what comes next into the system's page cache, from which the maps then take it. They
keep none of it, and stay within a bound of the loader; what is loaded does not change.

Measured with a cold file of 1 GB on a machine of two cores: 1.4 to 1.5 GB/s instead of 0.3 to 1.0;
from the page cache as fast as without, less 7%.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headstock.checkpoint.mapping import MappedFile
from headstock.errors import CheckpointError

THREADS = 4
PIECE_BYTES = 1 << 20
BYTES_AHEAD = 1 << 30
"""How far past the loader files are read: what a page cache has room for, and more than a disk
gives while a tensor is converted."""
ReadPiece = Callable[[int, bytearray, int], int]
"""From a descriptor, a buffer and an offset, as ``os.preadv``: bytes that were read."""


class ReadAhead:
    """Threads that read files in order, as far as they may.

    Args:
        files: In the order in which they are loaded.
        share: This process's number among those that load the same files on this machine, and how
            many those are: each reads its share of the pieces.
        read: Reads a piece.
        bytes_ahead: As far past the loader as pieces may begin.
    """

    def __init__(
        self,
        files: Sequence[MappedFile],
        *,
        share: tuple[int, int] = (0, 1),
        read: ReadPiece | None = None,
        bytes_ahead: int = BYTES_AHEAD,
    ) -> None:
        self._begins: dict[int, int] = {}
        self._pieces: list[tuple[int, Path, int]] = []
        end = 0
        for file in files:
            self._begins[id(file)] = end
            self._pieces += [
                (end + offset, file.path, offset) for offset in range(0, file.size, PIECE_BYTES)
            ]
            end += file.size
        self._pieces = self._pieces[share[0] :: share[1]]
        self._read = read
        self._bytes_ahead = bytes_ahead
        self._next, self._limit = 0, bytes_ahead
        self._is_closed = False
        self._error: OSError | None = None
        self._turn = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"read-ahead-{n}", daemon=True)
            for n in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def reached(self, file: MappedFile, num_bytes: int) -> None:
        """Say that ``num_bytes`` of ``file``, and all files before it, are loaded.

        Raises:
            CheckpointError: A piece could not be read.
        """
        with self._turn:
            self._limit = self._begins[id(file)] + num_bytes + self._bytes_ahead
            self._turn.notify_all()
            if self._error is not None:
                raise CheckpointError(
                    f"{self._error.filename} cannot be read: {self._error.strerror}.",
                    remedy="Check the disk, and download the file again.",
                ) from self._error

    def close(self) -> None:
        """Stop, and wait until no thread reads any more."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        buffer = bytearray(PIECE_BYTES)
        while (piece := self._take()) is not None:
            path, offset = piece
            try:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    (self._read or _read)(descriptor, buffer, offset)
                finally:
                    os.close(descriptor)
            except OSError as error:
                error.filename = error.filename or str(path)
                with self._turn:
                    self._error = error
                    self._is_closed = True
                    self._turn.notify_all()

    def _take(self) -> tuple[Path, int] | None:
        """Wait for the next piece that may be read; None: there is none."""
        with self._turn:
            while not self._is_closed and self._next < len(self._pieces):
                place, path, offset = self._pieces[self._next]
                if place < self._limit:
                    self._next += 1
                    return path, offset
                self._turn.wait()
        return None


@contextmanager
def reading_ahead(
    files: Sequence[MappedFile], share: tuple[int, int] = (0, 1)
) -> Generator[ReadAhead | None]:
    """Read ``files`` ahead while the block runs; None where the system cannot."""
    if not files or not hasattr(os, "preadv"):
        yield None
        return
    ahead = ReadAhead(files, share=share)
    try:
        yield ahead
    finally:
        ahead.close()


def _read(descriptor: int, buffer: bytearray, offset: int) -> int:
    """Read a piece, unless its end is in the page cache already: copies take time as well."""
    if _is_cached(descriptor, offset + len(buffer) - 1):
        return 0
    return os.preadv(descriptor, [buffer], offset)


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether a byte can be had without the disk; past the end of the file, or unknown: no."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # it cannot, or the system or the file system cannot say
        return False
