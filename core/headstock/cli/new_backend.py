"""Write a package for a new backend. It works as written, and passes the conformance kit.

It starts on the host's processor with one op of its own; put your device and ops in their place.
"""

from __future__ import annotations

import argparse
import keyword
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from headstock import __version__
from headstock.errors import ConfigError
from headstock.plugins.hooks import HOOK_API
from headstock.plugins.loader import discover

NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
SUFFIX = ".tmpl"


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``headstock new-backend``."""
    parser.add_argument("name", help="of the backend, as in --backend NAME")
    parser.add_argument(
        "--dir", metavar="DIR", help="folder to write; ./headstock-NAME when not given"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the package and say what to do next."""
    folder = Path(arguments.dir or f"headstock-{arguments.name.replace('_', '-')}")
    for path in write_backend(arguments.name, folder):
        print(path)
    print(
        f"\nNext:\n  pip install -e '{folder}[test]'\n  headstock backends\n  pytest {folder}\n"
        f"Then read {folder}/README.md."
    )
    return 0


def write_backend(name: str, folder: Path) -> list[Path]:
    """Write the package of a backend ``name`` into ``folder``, which must not have files yet.

    Raises:
        ConfigError: The name cannot be used, or the folder is not empty or cannot be written.
    """
    _check_name(name)
    words = {
        "name": name,
        "dist": f"headstock-{name.replace('_', '-')}",
        "package": f"headstock_{name}",
        "class_name": "".join(part.title() for part in name.split("_")),
        "api": ", ".join(str(number) for number in HOOK_API),
        "headstock": __version__,
        "next_headstock": _next_minor(__version__),
    }
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty.", remedy="Give a new folder with --dir, or remove it."
            )
        return [_write(template, path, folder, words) for template, path in _templates()]
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be written: {error.strerror}.",
            remedy="Give another folder with --dir.",
        ) from error


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            f"name is {name!r}, which cannot name a Python package.",
            remedy="Use small letters, digits and underscores, a letter first; 31 at most.",
        )
    taken = {record.name: record.dist for record in discover(only=()).backends}
    if name in taken:
        raise ConfigError(
            f"A backend {name!r} is installed already, by {taken[name]}.",
            remedy="Use another name: two of one name are refused when they are loaded.",
        )


def _templates() -> Iterator[tuple[Traversable, str]]:
    """Yield every template, and where it goes."""
    root = resources.files("headstock.cli") / "templates" / "backend"
    pending = [(root, "")]
    while pending:
        folder, prefix = pending.pop()
        for entry in sorted(folder.iterdir(), key=lambda e: e.name):
            if entry.is_dir():
                pending.append((entry, f"{prefix}{entry.name}/"))
            elif entry.name.endswith(SUFFIX):
                yield entry, prefix + entry.name.removesuffix(SUFFIX)


def _write(template: Traversable, path: str, folder: Path, words: Mapping[str, str]) -> Path:
    path = re.sub(r"^package/", f"{words['package']}/", path)
    target = folder / re.sub(r"^gitignore$", ".gitignore", path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(Template(template.read_text("utf-8")).substitute(words), encoding="utf-8")
    return target


def _next_minor(version: str) -> str:
    major, minor = version.split(".")[:2]
    return f"{major}.{int(minor) + 1}"
