"""Images of requests: where they come from, what they are decoded to, where they stand in prompts.

Nothing here trusts a client: bytes are bounded before they are decoded, and decoded in a process
that may read no file and open no connection.
"""

from headstock.multimodal.families import find_family
from headstock.multimodal.family import Family
from headstock.multimodal.prompt import place_media, row_mark_ids
from headstock.multimodal.reader import MediaReader, MediaRules
from headstock.multimodal.source import Source

__all__ = [
    "Family",
    "MediaReader",
    "MediaRules",
    "Source",
    "find_family",
    "place_media",
    "row_mark_ids",
]
