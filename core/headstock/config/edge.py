"""Flags over environment over file over defaults: read once, into frozen settings."""

from __future__ import annotations

import argparse
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from headstock.config.environment import Environment, read_environment
from headstock.config.file import read_file
from headstock.config.flags import given_settings
from headstock.config.options import Option, options
from headstock.config.schema import EngineSettings
from headstock.errors import ConfigError, did_you_mean

S = TypeVar("S", bound=EngineSettings)


class Source(enum.Enum):
    """Who set a value, from weakest to strongest."""

    DEFAULT = "default"
    BACKEND = "backend"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"
    CALL = "call"
    """An argument of ``headstock.Engine``."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from.

    Attributes:
        source: Who set it.
        name: The flag, variable, or file that did; a backend's reason.
    """

    source: Source
    name: str = ""


DEFAULT = Origin(Source.DEFAULT)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """Settings, and where each came from.

    Attributes:
        settings: The settings.
        origins: By path; settings that are not in it are defaults.
    """

    settings: S
    origins: Mapping[str, Origin]

    def origin(self, path: str) -> Origin:
        """Return where the setting ``path`` came from."""
        return self.origins.get(path, DEFAULT)

    @property
    def values(self) -> dict[str, Any]:
        """Every setting by path, as ``headstock_configure`` gets them."""
        return {o.path: _read(self.settings, o) for o in options(type(self.settings))}

    def with_patch(self, path: str, value: object, reason: str) -> Loaded[S]:
        """Return these settings with what a backend wants, unless the operator set it.

        Raises:
            ConfigError: There is no such setting, or the value is not allowed.
        """
        option = _option(type(self.settings), path)
        if self.origin(path).source not in (Source.DEFAULT, Source.BACKEND):
            return self
        wanted = option.convert(value, f"{path}, as a backend wants it,", is_text=False)
        settings = _built(type(self.settings), {**self.values, path: wanted})
        return Loaded(settings, {**self.origins, path: Origin(Source.BACKEND, reason)})


def read_settings(
    arguments: argparse.Namespace, settings: type[S], environment: Environment | None = None
) -> Loaded[S]:
    """Read the settings that a command was given.

    Args:
        arguments: Parsed by a parser that :func:`~headstock.config.flags.add_flags` filled.
        settings: The same type as there.
        environment: The process's own when not given.

    Raises:
        ConfigError: Naming the setting, where it was set, its value and what is allowed.
    """
    environment = environment or read_environment()
    path = vars(arguments).get("config") or environment.config_file
    from_file = read_file(path) if path else {}
    given = given_settings(arguments)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for option in options(settings):
        if option.path in given:
            flag, raw = given[option.path]
            origin, is_text = Origin(Source.FLAG, flag), True
        elif option.path in environment.values:
            raw = environment.values[option.path]
            origin, is_text = Origin(Source.ENVIRONMENT, option.variable), True
        elif option.path in from_file:
            raw = from_file[option.path]
            origin, is_text = Origin(Source.FILE, f"{path}: {option.path}"), False
        else:
            values[option.path] = option.default
            continue
        values[option.path] = option.convert(raw, origin.name, is_text=is_text)
        origins[option.path] = origin
    return Loaded(_built(settings, values), origins)


def settings_from_call(settings: type[S], arguments: Mapping[str, object]) -> Loaded[S]:
    """Build settings from keyword arguments, named as the settings are; defaults for the rest.

    Raises:
        ConfigError: An argument is no setting, or its value is not allowed.
    """
    by_name = {option.name: option for option in options(settings)}
    unknown = next((name for name in arguments if name not in by_name), None)
    if unknown is not None:
        raise ConfigError(
            f"{unknown} is not a setting.{did_you_mean(unknown, by_name)}",
            remedy="docs/configuration.md lists all of them.",
        )
    values = {option.path: option.default for option in by_name.values()}
    origins: dict[str, Origin] = {}
    for name, value in arguments.items():
        option = by_name[name]
        values[option.path] = option.convert(value, name, is_text=False)
        origins[option.path] = Origin(Source.CALL, name)
    return Loaded(_built(settings, values), origins)


def _option(settings: type[EngineSettings], path: str) -> Option:
    known = {option.path: option for option in options(settings)}
    if path not in known:
        raise ConfigError(
            f"{path} is not a setting.{did_you_mean(path, known)}",
            remedy="docs/configuration.md lists all of them.",
        )
    return known[path]


def _read(settings: EngineSettings, option: Option) -> Any:
    return getattr(getattr(settings, option.section), option.name)


def _built(settings: type[S], values: Mapping[str, Any]) -> S:
    """Return ``settings`` with ``values`` by path; all of them valid already."""
    tables: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        tables.setdefault(section, {})[name] = value
    return msgspec.convert(tables, settings)
