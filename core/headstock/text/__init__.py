"""Tokenizers, chat templates, incremental text."""

from headstock.text.detokenizer import Detokenizer, make_detokenizer
from headstock.text.patterns import StopPattern, compile_patterns
from headstock.text.stops import StopMatcher
from headstock.text.template import ChatTemplate
from headstock.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "StopMatcher",
    "StopPattern",
    "Tokenizer",
    "compile_patterns",
    "make_detokenizer",
]
