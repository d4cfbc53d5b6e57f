"""Whether the pages of a served model can be given back while it stays loaded."""

from __future__ import annotations

from headstock.assemble.backend import Opened
from headstock.assemble.serving_runner import Built
from headstock.engine import Pages
from headstock.parallel import RankedPages
from headstock.parallel.launch import Ranks

TAKEN = "Whole steps are taken over by a plugin, which may know where the pages are."


def releasable_pages(opened: Opened, built: Built, ranks: Ranks | None = None) -> Pages | str:
    """Return what gives the pages of a served model back, or why they stay.

    Args:
        opened: The backend.
        built: The model, ready to serve, on this rank.
        ranks: The others; None: there are none.
    """
    if not opened.device.facts.gives_memory_back:
        return f"The device {opened.device.name} keeps the memory that it has taken."
    if built.is_taken:
        return TAKEN
    return built.runner if ranks is None else RankedPages(built.runner, ranks)
