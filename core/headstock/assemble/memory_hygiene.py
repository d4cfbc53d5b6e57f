"""What a process keeps once it has loaded a model: no garbage to walk, no heap it will not use.

A process that has loaded a model holds more than it will use. ``malloc`` keeps freed pages, and
the code that imported and registered a tensor library stays mapped beside the little of it that a
step runs. Both are given back; code that is needed after all comes from the system's file cache.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAPS = Path("/proc/self/smaps")
_DONT_NEED = 4
"""``MADV_DONTNEED`` of Linux: the pages of a file may go, they can be read again."""
_TRIM_THRESHOLD = -1
"""``M_TRIM_THRESHOLD`` of glibc's mallopt(3)."""
KEPT_HEAP_BYTES = 128 * 1024
"""What glibc keeps free at the heap's end until it adapts."""


@contextmanager
def importing() -> Iterator[None]:
    """Collect nothing while the block imports, and nothing of that later.

    What is imported stays. Looking through it for garbage takes a fifth of the time that importing
    a tensor library takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def spare_what_lasts() -> None:
    """Keep what was made so far out of later collections.

    It lives as long as the process, and walking it holds every stream up.
    """
    gc.collect()
    gc.freeze()


def look_at_everything() -> None:
    """Undo :func:`spare_what_lasts`: later collections walk all objects again."""
    gc.unfreeze()


def give_back_memory() -> None:
    """Return to the system what this process will not need. Does nothing where it cannot."""
    library = ctypes.CDLL(None)
    give_back_heap()
    for begin, end in unchanged_code(_read_maps()):
        library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONT_NEED)


def give_back_heap() -> None:
    """Return the heap's free pages to the system: milliseconds, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others do not.
    if trim is not None:
        trim(0)


def keep_heap_small() -> None:
    """Return free memory at the end of the heap to the system, for the life of this process.

    glibc raises its threshold to twice the largest block freed so far: after one large body, what a
    burst of small ones took would stay. For processes that compute it is no use: their steps take
    and free the same memory over and over.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, KEPT_HEAP_BYTES)


def unchanged_code(maps: str) -> Iterator[tuple[int, int]]:
    """Yield where code lies that equals its file: dropping patched code would undo the patch.

    Args:
        maps: As in ``/proc/PID/smaps``.
    """
    span = None
    for line in maps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_code = words[1] == "r-xp" and len(words) > 5 and words[5].startswith("/")
            span = _span_of(words[0]) if is_code else None
        elif words[0] == "Anonymous:" and words[1] == "0" and span is not None:
            yield span


def _span_of(text: str) -> tuple[int, int]:
    begin, _, end = text.partition("-")
    return int(begin, 16), int(end, 16)


def _read_maps() -> str:
    """Return the process's maps; "" where the system does not tell."""
    try:
        return MAPS.read_text(errors="replace")
    except OSError:
        return ""
