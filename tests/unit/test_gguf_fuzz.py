"""Damaged GGUF files give a clear error: never a crash, a hang or a huge allocation."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstock.checkpoint.gguf_model import open_gguf
from headstock.errors import HeadstockError
from tests.unit.gguf_files import write_gguf

HEADER_BYTES = 3000
MEMORY_BYTES = 32 * 2**20
STRANGE = [0, 1, 2, 7, 8, 9, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@cache
def folder() -> TemporaryDirectory[str]:
    """Return where the files go; removed at exit."""
    return TemporaryDirectory()


@cache
def whole() -> bytes:
    """Return the bytes of a good file."""
    return write_gguf(Path(folder().name) / "whole.gguf").read_bytes()


def read_everything(content: bytes) -> None:
    """Read the file as a start does; damage must show as one of our errors, or not at all."""
    path = Path(folder().name) / "damaged.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with suppress(HeadstockError):
        files = open_gguf(path)
        for tensor in files.tensors():
            tensor.read_all()
        assert files.read_tokenizer is not None
        files.read_tokenizer()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY_BYTES


fuzz = settings(max_examples=200, deadline=None)


@fuzz
@given(end=st.integers(0, HEADER_BYTES))
def test_a_truncated_file(end: int) -> None:
    read_everything(whole()[:end])


@fuzz
@given(at=st.integers(0, HEADER_BYTES), value=st.sampled_from(STRANGE))
def test_a_huge_or_strange_number_anywhere(at: int, value: int) -> None:
    read_everything(whole()[:at] + struct.pack("<Q", value) + whole()[at + 8 :])


@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, HEADER_BYTES), st.integers(0, 255)), max_size=8),
)
def test_bytes_that_changed(edits: list[tuple[int, int]]) -> None:
    content = bytearray(whole())
    for at, value in edits:
        content[at] = value
    read_everything(bytes(content))


@fuzz
@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic(content: bytes) -> None:
    read_everything(b"GGUF\x03\x00\x00\x00" + content)


def test_tensors_that_overlap(tmp_path: Path) -> None:
    name = b"output_norm.weight"
    at = whole().index(name) + len(name) + 4 + 8 + 4
    damaged = whole()[:at] + struct.pack("<Q", 0) + whole()[at + 8 :]
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged)
    with pytest.raises(HeadstockError, match="overlap"):
        open_gguf(path)
