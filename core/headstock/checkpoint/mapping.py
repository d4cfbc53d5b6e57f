"""Maps a file into memory: reading it costs no copy, and its pages can always be dropped."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstock.checkpoint.bounded import check_regular
from headstock.errors import CheckpointError


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of ``path``; the map lives as long as arrays that view it.

    Private and copy-on-write, since tensors made of it must count as writable; nobody writes.

    Raises:
        CheckpointError: The file cannot be opened, or is no regular one.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return np.empty(0, np.uint8)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}.",
            remedy="Give the path of a readable file.",
        ) from error
    return np.frombuffer(mapped, np.uint8)
