"""The caller's lists of ids that may be drawn and of words that may not, checked and as ids."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.errors import RequestError
from headstock.requests.sampling import check_token_id
from headstock.server.request import GenerateRequest
from headstock.text import Tokenizer

MAX_BAD_WORDS = 128
MAX_WORD = 256
"""Characters of a bad word."""


def check_allowed(request: GenerateRequest, stop_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that the model does not have, and lists by which nothing could be drawn.

    Raises:
        RequestError: Naming the field.
    """
    allowed = request.allowed_token_ids
    if not allowed:
        return
    check_token_id("allowed_token_ids", min(allowed), vocab_size)
    check_token_id("allowed_token_ids", max(allowed), vocab_size)
    low = request.params.min_new_tokens
    if low > 0 and set(allowed) <= set(stop_ids):
        name = request.called("min_new_tokens")
        raise RequestError(
            f"allowed_token_ids has only ids that end the output, and {name} is {low}.",
            remedy=f"Allow other ids, or set {name} to 0.",
            field="allowed_token_ids",
        )


def bad_word_ids(words: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Return the ids by which ``words`` would be written: at a beginning, and after a blank.

    A word that the model writes in other pieces is not found: that is how this field is defined.

    Raises:
        RequestError: There are too many, one is empty or too long, or there is no tokenizer.
    """
    if not words:
        return []
    if tokenizer is None:
        raise _wrong("needs text, and this server was started without a tokenizer", "Leave it out.")
    if len(words) > MAX_BAD_WORDS:
        raise _wrong(f"has {len(words)} items; at most {MAX_BAD_WORDS}", "Send fewer.")
    found: list[list[int]] = []
    for word in words:
        if not word.strip() or len(word) > MAX_WORD:
            remedy = f"Give words of 1 to {MAX_WORD} characters."
            raise _wrong(f"has {word[:32]!r}, of {len(word)} characters", remedy)
        bare = tokenizer.encode(word, add_special_tokens=False)
        found.append(bare)
        after_blank = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        # A blank of its own is no part of the word: without it the word is banned already.
        if len(after_blank) == len(bare) and after_blank[0] != bare[0]:
            found.append(after_blank)
    return [ids for ids in found if ids]


def _wrong(what: str, remedy: str) -> RequestError:
    return RequestError(f"bad_words {what}.", remedy=remedy, field="bad_words")
