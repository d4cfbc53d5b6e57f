"""What ``headstock doctor`` says of this backend."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from headstock.errors import PluginError
from headstock.plugins.cores import ROOT, described, memory_nodes
from headstock.plugins.hooks import Finding
from headstock.plugins.installed import torch_build
from headstock_xeon import build
from headstock_xeon.native import FEATURES, how_to_build, load

SUBJECT = "native kernels"
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
    nodes = memory_nodes(root)
    text = f"{nodes.reason}; threads keep to no core"
    if nodes.is_bound:
        cores = described(nodes.cores)
        text = f"{nodes.reason}; threads keep to cores, and ranks take them, in order: {cores}"
    yield Finding(subject="binding", is_ok=True, text=text)


def left_out() -> Finding:
    """Say why nothing is computed by Intel's extension of PyTorch, whether or not it is here."""
    torch = torch_build()
    try:
        version = metadata.version(IPEX)
    except metadata.PackageNotFoundError:
        text = "not installed, not needed"
    else:
        here = torch.version if torch else "none"
        text = f"{version} is installed, beside torch {here}"
    text += "; left out: its development ended with 2.8, which loads with torch 2.8 alone"
    return Finding(subject=IPEX, is_ok=True, text=text)
