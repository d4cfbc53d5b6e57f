"""Programs in processes of their own, for input that may loop for ever or fill all memory."""

from headstock.sandbox.pool import Pool
from headstock.sandbox.process import LostError, Process

__all__ = ["LostError", "Pool", "Process"]
