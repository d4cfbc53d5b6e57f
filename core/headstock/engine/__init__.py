"""The step loop: requests in, tokens and ends out. Knows steps, not tensors."""

from headstock.engine.adapters import Shelf
from headstock.engine.engine import Engine, build_engine
from headstock.engine.guard import RunnerError
from headstock.engine.loop import EngineLoop
from headstock.engine.sleep import Pages
from headstock.engine.upkeep import Profiler, Weights

__all__ = [
    "Engine", "EngineLoop", "Pages", "Profiler", "RunnerError", "Shelf", "Weights", "build_engine",
]  # fmt: skip
