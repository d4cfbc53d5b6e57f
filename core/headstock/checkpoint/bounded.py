"""Reads a model's small files: regular ones of bounded size, whatever stands under their names."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, cast

from headstock.errors import CheckpointError

MAX_CONFIG_BYTES = 32 * 2**20
MAX_TOKENIZER_BYTES = 512 * 2**20


def read_bounded(path: Path, limit: int = MAX_CONFIG_BYTES) -> bytes:
    """Return what ``path`` holds.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: It is no regular file, larger than ``limit`` bytes, or cannot be read.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, str(error.strerror or error)) from error
    if len(data) > limit:
        raise _unreadable(path, f"it has more than {limit} bytes")
    return data


def read_json_bounded(path: Path, limit: int = MAX_CONFIG_BYTES) -> Any:
    """Return the JSON value in ``path``.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: It is no regular file, too large, no JSON, or nested too deep.
    """
    data = read_bounded(path, limit)
    try:
        return json.loads(data)
    except RecursionError as error:
        raise _unreadable(path, "its JSON is nested too deep") from error
    except ValueError as error:
        raise _unreadable(path, f"it is not JSON: {error}") from error


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


def check_regular(path: Path) -> None:
    """Refuse devices, pipes and folders, which may have no end or never answer.

    Raises:
        FileNotFoundError: There is nothing under this name.
        CheckpointError: ``path`` is no regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, str(error.strerror or error)) from error
    if not stat.S_ISREG(mode):
        raise _unreadable(path, "it is not a regular file")


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {why}.", remedy="Download the file again.")
