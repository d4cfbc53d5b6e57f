"""What ``headstock doctor`` says of this backend."""

from __future__ import annotations

from collections.abc import Iterator

from headstock.errors import PluginError
from headstock.plugins.cores import described, memory_nodes
from headstock.plugins.hooks import Finding
from headstock_xeon import build
from headstock_xeon.native import FEATURES, how_to_build, load

SUBJECT = "native kernels"


def examine() -> Iterator[Finding]:
    """Yield a line on the library, on the instruction sets in use, and on what threads keep to."""
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
    nodes = memory_nodes()
    bound = f"each thread keeps to a core, {described(nodes.cores)}"
    text = f"{nodes.reason}; {bound if nodes.is_bound else 'threads keep to no core'}"
    yield Finding(subject="binding", is_ok=True, text=text)
