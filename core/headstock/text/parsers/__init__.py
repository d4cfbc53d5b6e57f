"""An answer's text in parts: what was thought, what was said, which functions were called."""

from headstock.text.parsers.formats import CALL_FORMATS, REASONING_FORMATS, detect
from headstock.text.parsers.parts import Call, CallFormat, Part, ReasoningFormat, Tools
from headstock.text.parsers.reader import PartReader

__all__ = [
    "CALL_FORMATS",
    "REASONING_FORMATS",
    "Call",
    "CallFormat",
    "Part",
    "PartReader",
    "ReasoningFormat",
    "Tools",
    "detect",
]
