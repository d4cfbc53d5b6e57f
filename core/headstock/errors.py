"""Every error that Headstock raises on purpose.

HeadstockError
├── ConfigError         the operator must change a setting
├── PluginError         a backend or model package is missing or broken
├── UnsupportedError    this backend cannot do what the model or the configuration asks
├── CheckpointError     the model's files are incomplete, damaged or of another shape
├── AdapterError        an adapter's files are damaged, or do not fit the served model
├── DeviceError         a device, or a rank's process, is lost: only a new process can go on
└── RequestError        one request is at fault; the engine carries on

A broken invariant of our own is an ``AssertionError``, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadstockError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: What is wrong, with the offending value, in one sentence.
        remedy: What the reader can do about it, in one sentence.
    """

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem}\n  -> {remedy}")
        self.problem = problem
        self.remedy = remedy


class ConfigError(HeadstockError):
    """The operator must change a setting."""


class PluginError(HeadstockError):
    """A backend or model package is missing, broken or of another API version."""


class UnsupportedError(HeadstockError):
    """This backend cannot do what the model or the configuration asks."""


class CheckpointError(HeadstockError):
    """The model's files are incomplete, damaged, or do not fit the architecture."""


class AdapterError(HeadstockError):
    """An adapter's files are damaged, do not fit the model, or there is no room for them."""


class DeviceError(HeadstockError):
    """A device or a rank's process is lost; the engine must be started again."""


class RequestError(HeadstockError):
    """One request is at fault. It ends; nothing else does.

    Args:
        problem: What is wrong, with the value and the limit.
        remedy: What the caller can do.
        field: The request field at fault, as the caller spelled it, or None.
        code: A stable machine-readable name, such as ``context_length_exceeded``.
    """

    def __init__(
        self, problem: str, *, remedy: str, field: str | None = None, code: str = "invalid_value"
    ) -> None:
        super().__init__(problem, remedy=remedy)
        self.field = field
        self.code = code


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to ``name``, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def describe(error: BaseException) -> str:
    """Return what went wrong, on one line, with the kind of error unless it is ours."""
    if isinstance(error, HeadstockError):
        return error.problem
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
