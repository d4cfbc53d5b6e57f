"""Large files of callers, each whole or not there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from headstock.server.store.base import full

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_UNFINISHED = ".unfinished"


class Blobs:
    """Files by name in a folder of this user's.

    A file appears under its name when all of it is on disk. The names are the server's own: what a
    caller sends never becomes one. Who a file belongs to is kept in a store, beside it.

    Args:
        folder: Where they are; made if it is not there. Unfinished ones of a process that died
            are deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(f"*{_UNFINISHED}"):
            left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def create(self, name: str) -> Generator[BinaryIO]:
        """Give a file to write to; it is there under ``name`` once the block ends well.

        Runs in any thread.

        Raises:
            RequestError: Code ``storage_full``: the disk is full.
        """
        path = self.path(name)
        unfinished = path.with_name(name + _UNFINISHED)
        try:
            descriptor = os.open(
                unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            raise full(f"The file cannot be kept: {error.strerror}.", "Try later.") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Return where a file is, or will be."""
        assert _NAME.fullmatch(name), f"{name!r} is not a name of a blob"
        return self._folder / name

    def size(self, name: str) -> int | None:
        """Return the size of a file; None: there is none of that name. Bytes."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    def drop(self, name: str) -> bool:
        """Delete a file; tell whether there was one."""
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(each.name for each in self._folder.iterdir() if _NAME.fullmatch(each.name))
