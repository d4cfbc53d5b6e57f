"""Explain a setting: what it does, what it allows, its value here and where that comes from.

KEY is a setting's name, path, flag or variable, or another engine's flag for it; without one all
settings are listed with their values.

Examples:
  headstock config explain page_size
  headstock config explain --config engine.toml cache.memory_fraction
  headstock config explain HEADSTOCK_PORT
"""

from __future__ import annotations

import argparse
from typing import Any

from headstock.cli.table import format_table
from headstock.config import Loaded, ServeSettings, Source, read_settings
from headstock.config.aliases import aliases
from headstock.config.options import Option, options
from headstock.errors import ConfigError, did_you_mean


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``headstock config explain``."""
    parser.add_argument("key", nargs="?", metavar="KEY", help="a setting")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    table = aliases()
    others = (*table.spelling, *table.value, *table.always, *table.refused)
    for flag in dict.fromkeys([option.flag for option in options()] + list(others)):
        parser.add_argument(
            flag, dest="flag", action="store_const", const=flag, help=argparse.SUPPRESS
        )


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation."""
    loaded = read_settings(arguments, ServeSettings)
    key = arguments.flag or arguments.key
    if key is None:
        rows = [(o.path, _shown(o, loaded.values[o.path]), _origin(loaded, o)) for o in options()]
        print(format_table(("setting", "value", "from"), rows))
        return 0
    print(explain(key, loaded))
    return 0


def explain(key: str, loaded: Loaded[ServeSettings]) -> str:
    """Return what there is to say of the setting ``key``.

    Raises:
        ConfigError: It is no setting.
    """
    option = find(key)
    also = [flag for flag, path in aliases().spelling.items() if path == option.path]
    lines = [
        option.path,
        f"  {option.help}",
        "",
        f"  value     {_shown(option, loaded.values[option.path])} ({_origin(loaded, option)})",
        f"  default   {_shown(option, option.default)}",
        f"  allowed   {option.allowed}",
        f"  flag      {option.flag if option.has_flag else 'none: others would see it'}",
        f"  variable  {option.variable}",
        f"  file      [{option.section}] {option.name} = …",
    ]
    if also:
        lines.append(f"  also      {', '.join(also)}")
    return "\n".join(lines)


def find(key: str) -> Option:
    """Return the setting that ``key`` is a name of.

    Raises:
        ConfigError: There is none.
    """
    names: dict[str, Option] = {}
    by_path = {option.path: option for option in options()}
    for option in options():
        for name in (option.path, option.name, option.flag, option.variable):
            names[name] = option
        names[option.name.replace("_", "-")] = option
    table = aliases()
    names |= {flag: by_path[path] for flag, path in table.spelling.items() if path in by_path}
    names |= {flag: by_path[v.path] for flag, v in table.value.items() if v.path in by_path}
    if key in names:
        return names[key]
    if key in table.refused:
        refusal = table.refused[key]
        raise ConfigError(f"{key} is refused: {refusal.problem}", remedy=refusal.remedy)
    if key in table.always:
        raise ConfigError(f"{key} is not a setting: {table.always[key]}", remedy="Leave it out.")
    raise ConfigError(
        f"{key} is not a setting.{did_you_mean(key, names)}",
        remedy="`headstock config explain` lists all of them.",
    )


def _shown(option: Option, value: Any) -> str:
    if not option.has_flag:
        return "set" if value else "not set"  # secrets stay where they are
    if value is None or value == []:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _origin(loaded: Loaded[ServeSettings], option: Option) -> str:
    origin = loaded.origin(option.path)
    return "the default" if origin.source is Source.DEFAULT else f"from {origin.name}"
