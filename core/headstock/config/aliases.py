"""Other engines' flags that mean something here, from ``aliases.toml``."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources

import msgspec


class FixedValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A flag that stands for ``value`` of the setting ``path``."""

    path: str
    value: str


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a flag is not taken, and what to do instead."""

    problem: str
    remedy: str


class Aliases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of ``aliases.toml``, by flag.

    Attributes:
        spelling: Path of the setting that it is another name of.
        value: Setting and value that it stands for.
        always: Why it changes nothing.
        refused: Why it is an error.
    """

    spelling: dict[str, str]
    value: dict[str, FixedValue]
    always: dict[str, str]
    refused: dict[str, Refusal]


@functools.cache
def aliases() -> Aliases:
    """Read the table."""
    text = resources.files("headstock.config").joinpath("aliases.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Aliases)
