"""The TOML file: one table a section, one key a setting, nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, cast

from headstock.config.options import options
from headstock.errors import ConfigError, did_you_mean


def read_file(path: str) -> dict[str, Any]:
    """Return the values in the file at ``path``, by setting path.

    The file may hold settings of every command; each command takes those it has.

    Raises:
        ConfigError: The file cannot be read, is no TOML, or has an unknown section or key.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"The configuration file {path!r} cannot be read: {error.strerror}.",
            remedy="Give --config a readable TOML file.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}.", remedy="Mend that line."
        ) from error
    known = {option.path: option for option in options()}
    names = {option.section for option in known.values()}
    values: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in names:
            raise _unknown_section(path, section, names)
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: {section} is {table!r}, and should be a table.",
                remedy=f"Write [{section}] on a line of its own, and its keys below.",
            )
        for name, value in cast("dict[str, Any]", table).items():
            if f"{section}.{name}" not in known:
                raise _unknown_key(path, section, name)
            values[f"{section}.{name}"] = value
    return values


def _unknown_section(path: str, section: str, known: set[str]) -> ConfigError:
    homes = [option.section for option in options() if option.name == section]
    if homes:
        return ConfigError(
            f"{path}: {section} stands outside of a section.",
            remedy=f"Put it under [{homes[0]}].",
        )
    return ConfigError(
        f"{path}: there is no section [{section}].{did_you_mean(section, known)}",
        remedy=f"Sections: {', '.join(sorted(known))}.",
    )


def _unknown_key(path: str, section: str, name: str) -> ConfigError:
    homes = [option.section for option in options() if option.name == name]
    if homes:
        return ConfigError(
            f"{path}: {name} is not a key of [{section}].", remedy=f"Put it under [{homes[0]}]."
        )
    names = [option.name for option in options() if option.section == section]
    return ConfigError(
        f"{path}: [{section}] has no key {name}.{did_you_mean(name, names)}",
        remedy=f"Keys: {', '.join(names)}.",
    )
