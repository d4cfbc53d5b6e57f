"""Where any error of a stranger's code is caught: it becomes a reason instead of a crash."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from headstock import errors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a guarded call raised.

    Attributes:
        reason: What, and where, in one line.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Success(Generic[T]):
    """What a guarded call returned."""

    value: T


def guarded(call: Callable[[], T]) -> Success[T] | Failure:
    """Run ``call``, and turn whatever it raises into a :class:`Failure`.

    An import that calls ``sys.exit`` is caught too; Ctrl-C is not.
    """
    try:
        return Success(call())
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the boundary to foreign code
        return Failure(describe(error))


def describe(error: BaseException) -> str:
    """Return what went wrong, on one line, and where, such as ``(in package/file.py:12)``.

    The place is left out of errors that Headstock raises on purpose: their problem says enough.
    """
    text = errors.describe(error)
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, errors.HeadstockError) or not frames:
        return text
    last = frames[-1]
    path = Path(last.filename)
    return f"{text} (in {path.parent.name}/{path.name}:{last.lineno})"
