"""What cannot be written harms nobody, and is told of later."""

from __future__ import annotations

import io
import logging
import os

import pytest

from headstock.observe.log import set_up_logging
from headstock.observe.steady import SteadyStream


class Disk(io.StringIO):
    """A file on a disk that may be full."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_what_is_lost_on_a_full_disk_is_counted_and_told_of_when_there_is_room() -> None:
    disk = Disk()
    stream = SteadyStream(disk)
    stream.write("one\n")
    disk.is_full = True
    for text in ("two\n", "three\n"):
        assert stream.write(text) == len(text)
    disk.is_full = False
    stream.write("four\n")
    assert disk.getvalue() == "one\nheadstock: 2 writes to the log were lost.\nfour\n"


@pytest.mark.chaos
def test_a_log_whose_reader_is_gone_raises_nowhere(
    restored_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as pipe:
        set_up_logging("info", "text", pipe)
        for _ in range(3):
            logging.getLogger("headstock.test").info("a line")
        SteadyStream(pipe).flush()
        pipe_fails = pytest.raises(BrokenPipeError)
        with pipe_fails:
            pipe.write("directly\n")
        with pytest.raises(BrokenPipeError):
            pipe.close()
    assert capfd.readouterr().err == ""


@pytest.fixture
def restored_logging() -> object:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
