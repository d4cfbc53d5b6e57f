"""Traces of the engine process by PyTorch's profiler: what each op took, on host and device."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from headstock.errors import ConfigError

if TYPE_CHECKING:
    from torch.profiler import profile


class TorchProfiler:
    """Records what the thread that starts it does, until it stops it.

    A trace is in Chrome's format, gzipped: Perfetto opens it.
    """

    def __init__(self) -> None:
        self._profile: profile | None = None
        self._path = Path()

    def start(self, folder: str, *, has_stacks: bool, has_shapes: bool) -> str:
        """Begin; returns the path of the file to be.

        Args:
            folder: Where it is written; "": a new folder for files that may go.
            has_stacks: Whether each op has its Python stack.
            has_shapes: Whether each op has the shapes of its tensors.

        Raises:
            ConfigError: Nothing can be written there.
        """
        from torch.profiler import profile, supported_activities  # starts need not wait for it

        self._path = _writable(folder) / f"headstock-{time.time_ns() // 1_000_000}.trace.json.gz"
        # Every activity that this build of PyTorch can record: the host's, and its device's.
        self._profile = profile(
            activities=supported_activities(), with_stack=has_stacks, record_shapes=has_shapes
        )
        self._profile.start()
        return str(self._path)

    def stop(self) -> None:
        """End, and write the file.

        Raises:
            ConfigError: It cannot be written.
        """
        assert self._profile is not None, "no profile was started"
        running, self._profile = self._profile, None
        running.stop()
        try:
            running.export_chrome_trace(str(self._path))
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"The trace cannot be written to {self._path}: {error}.",
                remedy="Give output_dir a folder with room that the server may write to.",
            ) from error


def _writable(folder: str) -> Path:
    """Return the folder of a trace; makes it.

    Raises:
        ConfigError: Nothing can be written there.
    """
    try:
        if not folder:
            return Path(tempfile.mkdtemp(prefix="headstock-profile-"))
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ConfigError(
            f"output_dir is {folder!r}: {error.strerror or error}.",
            remedy="Name a folder that the server may write to.",
        ) from error
