"""Tokenizers, chat templates, incremental text."""

from headstock.text.chat import ContentForms, forms_of, render_chat
from headstock.text.detokenizer import Detokenizer, make_detokenizer
from headstock.text.patterns import StopPattern, compile_patterns
from headstock.text.stops import StopMatcher
from headstock.text.template import ChatTemplate
from headstock.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ContentForms",
    "Detokenizer",
    "StopMatcher",
    "StopPattern",
    "Tokenizer",
    "compile_patterns",
    "forms_of",
    "make_detokenizer",
    "render_chat",
]
