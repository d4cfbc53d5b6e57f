"""Drafts from the request's own text: what followed when its last tokens occurred before.

Nothing is trained and nothing is loaded. It pays where outputs repeat what is in the prompt, such
as edits, extraction and code, and it finds nothing elsewhere.
"""

from __future__ import annotations

from torch import Tensor

from headstock.ops.base import Resolver, Spec
from headstock.ops.drafts import draft_ngrams
from headstock.speculative.provider import DrafterSpec

MAX_N = 4
"""Longest match looked for. Tokens."""
MIN_N = 2
"""Shortest match that counts: single tokens occur everywhere. Tokens."""


class NgramDrafter:
    """Drafts by :func:`headstock.ops.drafts.draft_ngrams`."""

    def __init__(self, spec: DrafterSpec, resolver: Resolver) -> None:
        self._num_drafts = spec.num_drafts
        self._draft_ngrams = resolver.resolve(draft_ngrams, Spec(dtype="int32"))

    def draft(self, histories_SL: Tensor, slots_R: Tensor, known_R: Tensor) -> Tensor:
        """Return the drafts of each row."""
        return self._draft_ngrams(
            histories_SL,
            slots_R,
            known_R,
            max_n=MAX_N,
            min_n=MIN_N,
            num_drafts=self._num_drafts,
        )


def open_ngram(spec: DrafterSpec, resolver: Resolver) -> NgramDrafter:
    """Open the n-gram drafter."""
    return NgramDrafter(spec, resolver)
