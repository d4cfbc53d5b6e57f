"""The folder that ``--state-dir`` names: what outlives the API process."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import time
from pathlib import Path

from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError
from headstock.server.store.base import Bounds
from headstock.server.store.blobs import Blobs
from headstock.server.store.disk import DiskStore

LOCK_WAIT_S = 5.0
"""How long a start waits for the server before it, which may be ending. Seconds."""
SYNC_EVERY_S = 1.0
"""How long what was written may be lost with the machine's power. Seconds."""
_SECRET_BYTES = 16
_REMEDY = "Give --state-dir a folder that only this server's user can write to."
log = logging.getLogger(__name__)


def bounds_of(settings: ServerSettings) -> Bounds:
    """Return how much is kept, as the operator set it."""
    return Bounds(settings.state_bytes, settings.state_key_bytes)


class StateFolder:
    """A folder of this server alone, for this user alone.

    Args:
        path: Made if it is not there.
        bounds: How much its store keeps.

    Raises:
        ConfigError: It cannot be used, or another server uses it.
    """

    def __init__(self, path: Path, bounds: Bounds | None = None) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = path.stat().st_mode
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"state_dir {path} cannot be used: {error.strerror}.", remedy=_REMEDY
            ) from error
        try:
            self._take_lock()
            if mode & 0o077:
                log.warning("%s is open to other users: `chmod 700` it.", path)
            self.secret = self._read_secret()
            """Random bytes that stay the same over restarts."""
            self.store = DiskStore(path / "store", bounds)
        except BaseException:
            os.close(self._lock)
            raise

    def blobs(self, kind: str) -> Blobs:
        """Return the large files of a kind.

        Args:
            kind: A name of the server's own, such as ``files``.
        """
        return Blobs(self.path / kind)

    async def keep_synced(self) -> None:
        """Have the disk confirm what was written, once a second, until cancelled."""
        is_failing = False
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            if not self.store.is_dirty:
                continue
            try:
                await asyncio.to_thread(self.store.sync)
                is_failing = False
            except OSError as error:
                if not is_failing:
                    log.error("%s is not safe on the disk: %s", self.path, error.strerror)
                is_failing = True

    def close(self) -> None:
        """Write and confirm what is left, and give the folder free for another server."""
        self.store.flush()
        try:
            self.store.sync()
        except OSError as error:
            log.error("%s is not safe on the disk: %s", self.path, error.strerror)
        self.store.close()
        os.close(self._lock)

    def _take_lock(self) -> None:
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline_s:
                    time.sleep(0.05)
                    continue
                holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
                raise ConfigError(
                    f"state_dir {self.path} is in use by the process {holder or '?'}.",
                    remedy="Give each server a folder of its own.",
                ) from None
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)
            return

    def _read_secret(self) -> bytes:
        path = self.path / "secret"
        try:
            found = path.read_bytes() if path.exists() else b""
            if len(found) == _SECRET_BYTES:
                return found
            fresh = path.with_name("secret.new")
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be used: {error.strerror}.", remedy=_REMEDY
            ) from error
