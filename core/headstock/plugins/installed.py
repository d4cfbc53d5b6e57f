"""What is installed, read from files: importing it could be slow, or be what is broken."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PROJECT = "headstock"
"""The distribution that the core is in, and the plugins that its tests cover."""
BACKENDS, PLUGINS = "headstock.backends", "headstock.plugins"
"""Groups of entry points."""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The installed PyTorch.

    Attributes:
        version: Such as ``2.13.0+cpu``.
        toolkits: Version of each device toolkit it was built with, by PyTorch's name for it;
            those it was built without are left out.
    """

    version: str
    toolkits: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def torch_build() -> TorchBuild | None:
    """Return the installed PyTorch without importing it; None when there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        path = Path(folder) / "version.py"
        if path.is_file():
            return parse_torch_version(path.read_text(encoding="utf-8"))
    return None


def parse_torch_version(source: str) -> TorchBuild | None:
    """Return what PyTorch's generated ``version.py`` says."""
    strings: dict[str, str] = {}
    for statement in ast.parse(source).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str() as text))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str() as text))
            ):
                strings[name] = text
            case _:
                pass
    version = strings.pop("__version__", None)
    strings.pop("git_version", None)
    return None if version is None else TorchBuild(version, strings)


def is_installed(module: str) -> bool:
    """Say whether the top-level ``module`` could be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


@dataclass(frozen=True, slots=True)
class Brought:
    """An entry point, and who brings it.

    Attributes:
        group: Of the entry point.
        point: The entry point.
        dist: Name of its distribution, or "unknown".
        version: Of the distribution.
    """

    group: str
    point: metadata.EntryPoint
    dist: str
    version: str


def installed_points(*groups: str) -> list[Brought]:
    """Return the installed entry points of ``groups``, group by group; imports none of them.

    All distributions are looked through once, and the metadata of each that has any is read once.
    """
    known: dict[int, tuple[str, str]] = {}
    found = metadata.entry_points()
    brought: list[Brought] = []
    for group in groups:
        for point in found.select(group=group):
            dist = point.dist
            if id(dist) not in known:
                known[id(dist)] = (dist.name, dist.version) if dist else ("unknown", "0")
            brought.append(Brought(group, point, *known[id(dist)]))
    return brought


def has_foreign_plugins() -> bool:
    """Say whether another distribution than this one brings a plugin; loads none."""
    return any(each.dist != PROJECT for each in installed_points(BACKENDS, PLUGINS))
