"""Reads a model's small files: regular ones of bounded size, whatever stands under their names."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, cast

from headstock.errors import CheckpointError

MAX_CONFIG_BYTES = 32 * 2**20
MAX_TOKENIZER_BYTES = 128 * 2**20
MAX_VOCABULARY_BYTES = 16 * 2**20
"""Of vocabularies that are not JSON: of 262,000 pieces the largest known has 4.7 MB."""
MAX_VALUES = 3 << 18
"""Commas and brackets of a JSON file, that is its values, of which a million takes a second: as
many as a list of 100,000 added tokens has."""


def read_bounded(path: Path, limit: int = MAX_CONFIG_BYTES) -> bytes:
    """Return what ``path`` holds.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: It is no regular file, larger than ``limit`` bytes, or cannot be read.
    """
    check_regular(path, limit)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, str(error.strerror or error)) from error
    if len(data) > limit:
        raise _too_large(path, limit)
    return data


def read_json_bounded(path: Path, limit: int = MAX_CONFIG_BYTES) -> Any:
    """Return the JSON value in ``path``.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: It is no regular file, too large, no JSON, nested too deep, or of more
            than ``MAX_VALUES`` values.
    """
    try:
        return json.loads(read_json_bytes(path, limit))
    except RecursionError as error:
        raise _unreadable(path, "its JSON is nested too deep") from error
    except ValueError as error:
        raise _unreadable(path, f"it is not JSON: {error}") from error


def read_json_bytes(path: Path, limit: int = MAX_CONFIG_BYTES) -> bytes:
    """Return the JSON text in ``path``, not parsed.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: It is no regular file, too large, or of more than ``MAX_VALUES`` values.
    """
    data = read_bounded(path, limit)
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise _unreadable(path, f"its JSON has more than {MAX_VALUES} values")
    return data


def read_object_bounded(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; see :func:`read_json_bounded`.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: It is something else.
    """
    found = read_json_bounded(path)
    if not isinstance(found, dict):
        raise _unreadable(path, "it holds no JSON object")
    return cast("dict[str, Any]", found)


def read_text_bounded(path: Path, limit: int = MAX_CONFIG_BYTES) -> str:
    """Return the UTF-8 text in ``path``.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: It is no regular file, too large, or no UTF-8.
    """
    try:
        return read_bounded(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"byte {error.start} is not UTF-8") from error


def check_regular(path: Path, limit: int | None = None) -> None:
    """Refuse devices, pipes and folders, which may have no end or never answer.

    Args:
        path: The file.
        limit: Bytes that it may have; None: any number.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: ``path`` is no regular file, or larger than ``limit`` bytes.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, str(error.strerror or error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise _unreadable(path, "it is not a regular file")
    if limit is not None and found.st_size > limit:
        raise _too_large(path, limit)


def _too_large(path: Path, limit: int) -> CheckpointError:
    return _unreadable(path, f"it has more than {limit} bytes")


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {why}.", remedy="Download the file again.")
