"""Flags, generated from the schema: a group a section, a flag a setting."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from headstock.config.aliases import aliases
from headstock.config.options import Option, options, sections
from headstock.config.schema import EngineSettings
from headstock.errors import ConfigError

GIVEN = "given_settings"
"""Where a parsed namespace keeps the settings: path to (flag as typed, raw value)."""


class _Give(argparse.Action):
    """Note the value of a setting, with the spelling of the flag that gave it."""

    def __init__(
        self, *, path: str, value: Any = None, option: Option | None = None, **keywords: Any
    ) -> None:
        self._option = option
        super().__init__(**keywords)
        self._path = path
        self._value = value

    @property
    def help(self) -> str | None:
        """What ``--help`` says of it; made when it is asked for."""
        return self._help if self._option is None else _help(self._option)

    @help.setter
    def help(self, text: str | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._help = text

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given: dict[str, tuple[str, Any]] = vars(namespace).setdefault(GIVEN, {})
        raw = values if self.nargs != 0 else self._value_of(option_string)
        flag = option_string or self._path.partition(".")[2].upper()
        before = given.get(self._path)
        if before is not None and option_string is None and before[1] != raw:
            raise ConfigError(
                f"{flag} is given twice: {raw!r}, and {before[1]!r} by {before[0]}.",
                remedy="Give it once.",
            )
        given[self._path] = (flag, raw)

    def _value_of(self, option_string: str | None) -> Any:
        if self._value is not None:
            return self._value
        return "false" if (option_string or "").startswith("--no-") else "true"


class _GiveMore(_Give):
    """Add to a list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given: dict[str, tuple[str, Any]] = vars(namespace).setdefault(GIVEN, {})
        _, before = given.get(self._path, ("", []))
        given[self._path] = (option_string or "", [*before, values])


class _Always(argparse.Action):
    """Take a flag that asks for what is always so."""

    def __call__(self, *_: Any) -> None:
        return None


class _Refused(argparse.Action):
    """Refuse a flag of another engine, with the reason."""

    def __init__(self, *, refusal: Any, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._refusal = refusal

    def __call__(self, *_: Any) -> None:
        raise ConfigError(
            f"{self.option_strings[0]}: {self._refusal.problem}", remedy=self._refusal.remedy
        )


def add_flags(
    parser: argparse.ArgumentParser,
    settings: type[EngineSettings],
    *,
    has_model_argument: bool = True,
) -> None:
    """Add ``--config`` and a flag for every setting of ``settings`` to ``parser``.

    Args:
        parser: Of one command.
        settings: What that command takes.
        has_model_argument: Whether the model may be given without ``--model``.
    """
    # argparse would list every flag before the first word of help.
    parser.usage = f"{parser.prog} {'[MODEL] ' if has_model_argument else ''}[options]"
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with settings; flags and environment win."
    )
    if has_model_argument:
        parser.add_argument(
            "model_argument",
            nargs="?",
            metavar="MODEL",
            action=_Give,
            path="model.model",
            default=argparse.SUPPRESS,
            help="as --model",
        )
    known = options(settings)
    for section, struct in sections(settings):
        group = parser.add_argument_group(section, (struct.__doc__ or "").strip())
        for option in known:
            if option.section == section and option.has_flag:
                _add_flag(group, option)
    _add_aliases(parser, {option.path: option for option in known})


def given_settings(arguments: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """Return the settings that flags gave: path to (flag as typed, raw value)."""
    return dict(vars(arguments).get(GIVEN, {}))


def _add_flag(group: Any, option: Option) -> None:
    common: dict[str, Any] = {
        "path": option.path,
        "dest": option.path,
        "default": argparse.SUPPRESS,
        "option": option,
    }
    if option.kind == "bool":
        negative = f"--no-{option.name.replace('_', '-')}"
        group.add_argument(option.flag, negative, action=_Give, nargs=0, **common)
    elif option.kind == "list":
        group.add_argument(option.flag, action=_GiveMore, metavar="VALUE", **common)
    else:
        metavar = {"choice": f"{{{','.join(option.choices)}}}", "int": "N", "float": "X"}
        group.add_argument(
            option.flag, action=_Give, metavar=metavar.get(option.kind, "VALUE"), **common
        )


def _help(option: Option) -> str:
    has_default = option.default is not None and option.kind != "list"
    default = f" (default: {str(option.default).lower()})" if has_default else ""
    return f"{option.help}{default}".replace("%", "%%")


def _add_aliases(parser: argparse.ArgumentParser, known: dict[str, Option]) -> None:
    """Add other engines' spellings. They work, and stay out of the help."""
    table = aliases()
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    for flag, path in table.spelling.items():
        if path in known:
            parser.add_argument(flag, action=_Give, path=path, dest=flag, **hidden)
    for flag, fixed in table.value.items():
        if fixed.path in known:
            parser.add_argument(
                flag,
                action=_Give,
                nargs=0,
                path=fixed.path,
                value=fixed.value,
                dest=flag,
                **hidden,
            )
    for flag in table.always:
        parser.add_argument(flag, action=_Always, nargs=0, dest=flag, **hidden)
    for flag, refusal in table.refused.items():
        parser.add_argument(flag, action=_Refused, nargs="?", refusal=refusal, dest=flag, **hidden)
