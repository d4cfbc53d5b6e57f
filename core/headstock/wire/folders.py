"""Folders of sockets: private, and known to be left behind when their process was killed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "headstock-"
_LOCK = "lock"
log = logging.getLogger(__name__)


class PrivateFolder:
    """A new folder that only this user can enter, locked for as long as its process lives.

    Args:
        kind: Part of its name.
    """

    def __init__(self, kind: str = "") -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}"))  # mode 0700
        unlocked = self.path / "unlocked"
        self._lock = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / _LOCK)  # so that there is no moment with a lock that is free

    def remove(self) -> None:
        """Delete the folder. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def sweep_folders(parent: Path | None = None) -> int:
    """Delete folders whose process is gone; return how many.

    Args:
        parent: Where they are; the system's folder for temporary files when not given.
    """
    count = 0
    for folder in (parent or Path(tempfile.gettempdir())).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or being deleted by its owner
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                count += 1
            finally:
                os.close(lock)
    if count:
        log.info("Deleted %d folders of processes that were killed", count)
    return count
