"""Chunks to tensors to tokens: runs step plans on a device."""

from __future__ import annotations

from headstock.runner.build import build_runner
from headstock.runner.memory import MemoryPlan
from headstock.runner.options import PaddedSizes, RunnerOptions, padded_sizes
from headstock.runner.runner import TorchRunner
from headstock.runner.step import ModelParts

__all__ = [
    "MemoryPlan",
    "ModelParts",
    "PaddedSizes",
    "RunnerOptions",
    "TorchRunner",
    "build_runner",
    "padded_sizes",
]
