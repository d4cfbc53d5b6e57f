"""What ``headstock doctor`` says of this backend."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from headstock.errors import PluginError
from headstock.plugins.cores import ROOT, described, memory_nodes, num_compute_threads
from headstock.plugins.hooks import Finding
from headstock_xeon import build
from headstock_xeon.native import FEATURES, MEASURED, Library, how_to_build, load

SUBJECT = "native kernels"
PRODUCTS = {
    "float32": (0, 0), "bfloat16": (1, 0), "int8": (2, 32), "int8 in groups of 16": (2, 16),
    "int4": (3, 32),
}  # fmt: skip
"""Weights by their ``WeightKind`` and group."""
IPEX = "intel-extension-for-pytorch"


def examine(root: Path = ROOT) -> Iterator[Finding]:
    """Yield lines on the library, instruction sets, what threads keep to, and what is left out.

    Args:
        root: Where ``sys`` is.
    """
    yield left_out()
    try:
        library = load()
    except PluginError as error:
        text = f"{error.problem} PyTorch computes instead."
        yield Finding(subject=SUBJECT, is_ok=False, text=text, remedy=error.remedy)
        return
    if build.SOURCES.is_dir() and library.sources != build.sources_digest():
        text = "The library is older than its sources."
        yield Finding(subject=SUBJECT, is_ok=False, text=text, remedy=how_to_build())
    else:
        text = f"{len(library.kernels)} kernels, built from {library.sources}"
        yield Finding(subject=SUBJECT, is_ok=True, text=text)
    names = sorted(library.capabilities(library.features), key=lambda name: FEATURES[name])
    yield Finding(subject="instruction sets", is_ok=True, text=", ".join(names) or "none")
    if library.features:
        yield from products(library)
    nodes = memory_nodes(root)
    cores = f"cores, and ranks take them, in order: {described(nodes.cores)}"
    text = f"{nodes.reason}; threads keep to {cores if nodes.is_bound else 'no core'}"
    yield Finding(subject="binding", is_ok=True, text=text)


def products(library: Library) -> Iterator[Finding]:
    """Yield which kernel multiplies each kind of weight, and why: measured as a start does it."""
    engine = library.calls.hs_open(num_compute_threads(), 0, library.features | MEASURED)
    for name, kind in PRODUCTS.items():
        text = library.calls.hs_weight_choice(engine, *kind).decode()
        yield Finding(subject=f"products with {name}", is_ok=True, text=text)
    library.calls.hs_close(engine)


def left_out() -> Finding:
    """Say why nothing is computed by Intel's extension of PyTorch, whether or not it is here."""
    try:
        text = f"{metadata.version(IPEX)} is installed"
    except metadata.PackageNotFoundError:
        text = "not installed, not needed"
    text += "; left out: its development ended with 2.8, which loads with torch 2.8 alone"
    return Finding(subject=IPEX, is_ok=True, text=text)
