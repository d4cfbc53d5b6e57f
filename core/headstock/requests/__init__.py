"""What was asked: sampling parameters, limits and how a request can end."""

from headstock.requests.finish import FinishReason
from headstock.requests.grammar import Grammar
from headstock.requests.sampling import SamplingParams

__all__ = ["FinishReason", "Grammar", "SamplingParams"]
