"""One file of a log: a header, then records, each with its length and checksum.

The header is a line, ``headstock-log 1``. Then come, for each record, its length and the CRC-32 of
it, both as little-endian 32-bit integers, and its bytes. A file is only ever appended to.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from headstock.errors import ConfigError

MAGIC = b"headstock-log "
HEADER = MAGIC + b"1\n"
FRAME = struct.Struct("<II")
_READ_BYTES = 1024 * 1024
log = logging.getLogger(__name__)


def framed(record: bytes) -> bytes:
    """Return ``record`` as it stands in a file."""
    return FRAME.pack(len(record), zlib.crc32(record)) + record


class Segment:
    """A file of records.

    Args:
        path: Where it is, or will be: private to this user.

    Raises:
        ConfigError: There is a file which is no log, or of another version.
        OSError: It cannot be opened or made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self.size = os.fstat(self._file).st_size
            head = os.pread(self._file, len(HEADER), 0)
            if len(head) < len(HEADER) and HEADER.startswith(head):  # made, and no more
                self.size = 0
                self.append(HEADER)
            elif head != HEADER:
                raise _foreign(path, head)
        except BaseException:
            os.close(self._file)
            raise

    def records(self, *, is_last: bool) -> Iterator[tuple[int, bytes]]:
        """Yield where each record begins, and its bytes; what follows a damaged one is left out.

        Args:
            is_last: No other file was written after this one: a record that was being written
                when the machine stopped is cut off, so that the next one follows a whole one.
        """
        at = len(HEADER)
        while at < self.size:
            length, checksum = self._frame(at)
            record = b""
            if 0 <= length <= self.size - at - FRAME.size:
                record = os.pread(self._file, length, at + FRAME.size)
            if len(record) != length or zlib.crc32(record) != checksum:
                break
            yield at, record
            at += FRAME.size + length
        if at == self.size:
            return
        log.warning(
            "%s is damaged from byte %d on: its last %d bytes are left out",
            self.path, at, self.size - at,
        )  # fmt: skip
        if is_last:
            os.ftruncate(self._file, at)
            self.size = at

    def read(self, at: int) -> bytes:
        """Return the record that begins at a byte.

        Raises:
            OSError: It cannot be read any more.
        """
        length, checksum = self._frame(at)
        record = os.pread(self._file, length, at + FRAME.size) if length >= 0 else b""
        if zlib.crc32(record) != checksum:
            raise OSError(f"{self.path} is damaged at byte {at}")
        return record

    def append(self, data: bytes | bytearray) -> None:
        """Write ``data`` at the end, or none of it.

        Raises:
            OSError: The disk is full, or fails.
        """
        at, view = self.size, memoryview(data)
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                at += written
                view = view[written:]
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size = at

    def sync(self) -> None:
        """Wait until the disk has it. Any thread may call it."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _frame(self, at: int) -> tuple[int, int]:
        frame = os.pread(self._file, FRAME.size, at)
        return FRAME.unpack(frame) if len(frame) == FRAME.size else (-1, 1)


def _foreign(path: Path, head: bytes) -> ConfigError:
    if head.startswith(MAGIC):
        version = head.removeprefix(MAGIC).strip().decode("ascii", "replace")
        return ConfigError(
            f"{path} is a log of version {version!r}; this server writes version 1.",
            remedy="Serve with the version that wrote it, or give another --state-dir.",
        )
    return ConfigError(
        f"{path} is not a log of this server.",
        remedy="Give a --state-dir that only this server uses.",
    )
