"""Processes that share a model: rank 0 plans, every rank runs the same steps."""

from __future__ import annotations

from headstock.parallel.address import RankAddress
from headstock.parallel.launch import Ranks, spawn_ranks
from headstock.parallel.pages import RankedPages
from headstock.parallel.ranked import RankedRunner
from headstock.parallel.serve import join_ranks, serve_rank
from headstock.parallel.shelf import RankedShelf

__all__ = [
    "RankAddress",
    "RankedPages",
    "RankedRunner",
    "RankedShelf",
    "Ranks",
    "join_ranks",
    "serve_rank",
    "spawn_ranks",
]
