"""Whether a cached model is still what was fetched: by its digest, once its size or time changed.

Beside a model lies a stamp: each file's size and time of change when its digest was last right.
While they are the same, no file is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from headstock.checkpoint.catalog import CatalogModel
from headstock.errors import CheckpointError


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it was when its digest was right."""

    size_bytes: int
    changed_ns: int
    sha256: str


Stamp = dict[str, Seen]
"""By path within the model's folder; "" is the model's one file."""


def stamp_path(path: Path) -> Path:
    """Return where the stamp of the model at ``path`` lies."""
    return path.with_name(f"{path.name}.verified")


def stamp(path: Path, sha256: str | None = None) -> None:
    """Write down that the model at ``path`` is right: it has just been checked.

    A cache that cannot be written to has no stamp: its model is read at each start.

    Args:
        path: A file, or a folder.
        sha256: Digest of the file; those of a folder's files are computed.
    """
    seen: Stamp = {}
    for name, file in _files(path):
        facts = file.stat()
        seen[name] = Seen(facts.st_size, facts.st_mtime_ns, sha256 or digest(file))
    with contextlib.suppress(OSError):
        stamp_path(path).write_bytes(msgspec.json.encode(seen))


def verify(model: CatalogModel, path: Path, *, always: bool = False) -> None:
    """Refuse a cached model that is not what was fetched.

    Args:
        model: The catalog's entry.
        path: Where it is.
        always: Read every file, changed or not.

    Raises:
        CheckpointError: A file differs, is missing or is one too many; or, with ``always``, a
            folder has no stamp to compare with.
    """
    known = _read(path)
    if known is None and model.is_archive:
        if always:
            raise CheckpointError(
                f"{path} was fetched by a version that noted no digests.",
                remedy=f"Delete it, then `headstock pull {model.name}`.",
            )
        return
    pinned = known or {"": Seen(-1, -1, model.sha256)}
    if not model.is_archive:
        pinned = {"": Seen(pinned[""].size_bytes, pinned[""].changed_ns, model.sha256)}
    is_changed = False
    for name, file in _files(path):
        seen, facts = pinned.pop(name, None), file.stat()
        is_same = seen is not None and (facts.st_size, facts.st_mtime_ns) == (
            seen.size_bytes,
            seen.changed_ns,
        )
        if is_same and not always:
            continue
        is_changed = True
        got = digest(file)
        if seen is None or got != seen.sha256:
            wanted = "no such file" if seen is None else seen.sha256
            raise _refusal(model, file, f"has SHA-256 {got}, and {wanted} was fetched")
    for name in pinned:
        raise _refusal(model, path / name, "is missing")
    if is_changed:
        stamp(path, None if model.is_archive else model.sha256)


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal(model: CatalogModel, file: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{file} {problem}.",
        remedy=f"Do not use it. Delete it and its folder, then `headstock pull {model.name}`.",
    )


def _files(path: Path) -> list[tuple[str, Path]]:
    """Return a model's files by their path within it, in a fixed order."""
    if path.is_file():
        return [("", path)]
    found = sorted(each for each in path.rglob("*") if each.is_file())
    return [(each.relative_to(path).as_posix(), each) for each in found]


def _read(path: Path) -> Stamp | None:
    """Return the stamp of the model at ``path``; None: there is none that can be read."""
    try:
        seen = msgspec.json.decode(stamp_path(path).read_bytes(), type=Stamp)
    except (OSError, msgspec.DecodeError):
        return None
    return seen if seen and (("" in seen) == path.is_file()) else None
