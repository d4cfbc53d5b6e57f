"""The step loop: requests in, tokens and ends out. Knows steps, not tensors."""

from headstock.engine.adapters import Shelf
from headstock.engine.engine import Engine, build_engine
from headstock.engine.guard import RunnerError
from headstock.engine.loop import EngineLoop

__all__ = ["Engine", "EngineLoop", "RunnerError", "Shelf", "build_engine"]
