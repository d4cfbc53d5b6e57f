"""What the next step computes. Pure Python: no device, no clock, no I/O."""

from headstock.scheduler.flight import Drawn
from headstock.scheduler.request import Request
from headstock.scheduler.scheduler import Scheduler

__all__ = ["Drawn", "Request", "Scheduler"]
