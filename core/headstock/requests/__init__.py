"""What was asked: sampling parameters, limits and how a request can end."""

from headstock.requests.finish import FinishReason
from headstock.requests.grammar import Grammar
from headstock.requests.sampling import SamplingParams
from headstock.requests.token_ids import TokenIds

__all__ = ["FinishReason", "Grammar", "SamplingParams", "TokenIds"]
