"""Files are read ahead of the loader, several pieces at once, and no farther than allowed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headstock.checkpoint.mapping import MappedFile
from headstock.checkpoint.read_ahead import PIECE_BYTES, THREADS, ReadAhead, reading_ahead
from headstock.errors import CheckpointError

WAIT_S = 10.0


def write(folder: Path, *sizes: int) -> list[MappedFile]:
    files: list[MappedFile] = []
    for number, size in enumerate(sizes):
        path = folder / str(number)
        path.write_bytes(os.urandom(size))
        files.append(MappedFile(path))
    return files


class Recorder:
    """Reads pieces, and keeps which; paths by descriptor are those that the system says."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.pieces: list[tuple[str, int]] = []
        self.before = before
        self.lock = threading.Lock()

    def __call__(self, descriptor: int, buffer: bytearray, offset: int) -> int:
        self.before()
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        count = os.preadv(descriptor, [buffer], offset)
        with self.lock:
            self.pieces.append((path, offset))
        return count

    def until(self, count: int) -> None:
        limit = time.monotonic() + WAIT_S
        while len(self.pieces) < count and time.monotonic() < limit:
            time.sleep(0.002)
        assert len(self.pieces) == count, self.pieces


def pieces(*sizes: int) -> list[tuple[str, int]]:
    return [
        (str(number), offset)
        for number, size in enumerate(sizes)
        for offset in range(0, size, PIECE_BYTES)
    ]


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
SIZES = (3 * PIECE_BYTES, 5 * PIECE_BYTES + 7, 0, 100)


@linux
def test_every_piece_is_read_once(tmp_path: Path) -> None:
    recorder = Recorder()
    ahead = ReadAhead(write(tmp_path, *SIZES), read=recorder)
    recorder.until(len(pieces(*SIZES)))
    ahead.close()
    assert sorted(recorder.pieces) == pieces(*SIZES)


@linux
def test_several_threads_read_at_once(tmp_path: Path) -> None:
    """Each waits until as many as there are read: one alone would never come back."""
    together = threading.Barrier(THREADS, timeout=WAIT_S)
    recorder = Recorder(together.wait)
    ahead = ReadAhead(write(tmp_path, 2 * THREADS * PIECE_BYTES), read=recorder)
    recorder.until(2 * THREADS)
    ahead.close()
    assert not together.broken


@linux
def test_nothing_is_read_farther_ahead_than_allowed(tmp_path: Path) -> None:
    files = write(tmp_path, 4 * PIECE_BYTES, 4 * PIECE_BYTES)
    recorder = Recorder()
    ahead = ReadAhead(files, read=recorder, bytes_ahead=2 * PIECE_BYTES)
    recorder.until(2)
    time.sleep(0.05)
    assert len(recorder.pieces) == 2
    ahead.reached(files[0], 3 * PIECE_BYTES)
    recorder.until(5)
    ahead.reached(files[1], 0)
    recorder.until(6)
    time.sleep(0.05)
    assert sorted(recorder.pieces) == pieces(4 * PIECE_BYTES, 2 * PIECE_BYTES)
    ahead.close()


@linux
def test_ranks_part_the_pieces_among_themselves(tmp_path: Path) -> None:
    files, found = write(tmp_path, *SIZES), []
    for rank in range(3):
        recorder = Recorder()
        ahead = ReadAhead(files, share=(rank, 3), read=recorder)
        recorder.until(len(pieces(*SIZES)[rank::3]))
        ahead.close()
        found += recorder.pieces
    assert sorted(found) == pieces(*SIZES)


def test_closing_ends_threads_that_wait(tmp_path: Path) -> None:
    before = threading.active_count()
    with reading_ahead(write(tmp_path, 3 * PIECE_BYTES)):
        pass
    ReadAhead(write(tmp_path, 3 * PIECE_BYTES), bytes_ahead=0).close()
    assert threading.active_count() == before


def test_what_cannot_be_read_is_said_to_the_loader(tmp_path: Path) -> None:
    def fail(descriptor: int, buffer: bytearray, offset: int) -> int:
        raise OSError(5, "Input/output error")

    (file,) = write(tmp_path, PIECE_BYTES)
    ahead = ReadAhead([file], read=fail)
    with pytest.raises(CheckpointError, match="Input/output error"):  # noqa: PT012 - it takes a while
        limit = time.monotonic() + WAIT_S
        while time.monotonic() < limit:
            ahead.reached(file, 0)
            time.sleep(0.002)
    ahead.close()


@linux
def test_pieces_in_the_page_cache_are_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were just written are there; a system that cannot say so has them read."""
    sizes: list[int] = []
    plain = os.preadv

    def count(descriptor: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        sizes.append(len(buffers[0]))
        return plain(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", count)
    for has_flag in (True, False):
        sizes.clear()
        if not has_flag:
            monkeypatch.delattr(os, "RWF_NOWAIT")
        files = write(tmp_path, 4 * PIECE_BYTES)
        with reading_ahead(files) as ahead:
            assert ahead is not None
            limit = time.monotonic() + WAIT_S
            while len(sizes) < 4 and time.monotonic() < limit:
                time.sleep(0.002)
        assert sizes == [1 if has_flag else PIECE_BYTES] * 4


def test_a_folder_without_files_is_not_read() -> None:
    with reading_ahead([]) as ahead:
        assert ahead is None
