"""Processes that share a model: rank 0 plans, every rank runs the same steps."""

from __future__ import annotations

from headstock.parallel.address import RankAddress
from headstock.parallel.launch import Ranks, spawn_ranks
from headstock.parallel.ranked import RankedRunner
from headstock.parallel.serve import join_ranks, serve_rank

__all__ = [
    "RankAddress",
    "RankedRunner",
    "Ranks",
    "join_ranks",
    "serve_rank",
    "spawn_ranks",
]
