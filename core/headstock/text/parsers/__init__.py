"""An answer's text in parts: what was thought, what was said, which functions were called."""

from headstock.text.parsers.formats import CALL_FORMATS, REASONING_FORMATS, detect
from headstock.text.parsers.parts import (
    NUMBER,
    Call,
    CallFormat,
    Part,
    ReasoningFormat,
    Tagged,
    Tools,
    Writing,
)
from headstock.text.parsers.reader import PartReader

__all__ = [
    "CALL_FORMATS",
    "NUMBER",
    "REASONING_FORMATS",
    "Call",
    "CallFormat",
    "Part",
    "PartReader",
    "ReasoningFormat",
    "Tagged",
    "Tools",
    "Writing",
    "detect",
]
