"""Text of one request as its tokens arrive.

Whatever way the ids are split into calls, the pieces returned join to what decoding the prompt and
all of them at once adds to the prompt's own text: a character is held until its last byte is there,
and :meth:`flush` gives back what never became one.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from headstock.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
_MAX_HELD = 32
"""Tokens that a prefix-diff decoder holds back before it takes U+FFFD for an answer."""
_NEIGHBOURS = 4
"""Tokens with text, at the prompt's end, that the first output token is decoded behind."""


class Detokenizer(Protocol):
    """Incremental decoding of one sequence of token ids."""

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes; "" while a character is incomplete."""
        ...

    def flush(self) -> str:
        """Return what is held, at the end of the sequence; incomplete bytes become U+FFFD."""
        ...


def make_detokenizer(
    tokenizer: Tokenizer, *, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True
) -> Detokenizer:
    """Return a new detokenizer: by table where the tokenizer allows, else by prefix difference.

    Args:
        tokenizer: The model's.
        prompt_ids: What stands before the first token pushed: some tokenizers write a word behind
            others with a space, and alone without.
        skip_special_tokens: Leave them out of the text.
    """
    if tokenizer.pieces.is_byte_level:
        return ByteDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return PrefixDetokenizer(
        tokenizer, prompt_ids=prompt_ids, skip_special_tokens=skip_special_tokens
    )


class ByteDetokenizer:
    """For byte-level tokenizers: looks pieces up, and joins characters across tokens."""

    __slots__ = ("_decoder", "_pieces", "_skip")

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._pieces = tokenizer.pieces
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decoder: codecs.IncrementalDecoder | None = None

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes."""
        if token_id in self._skip:
            return ""
        piece = self._pieces[token_id]
        decoder = self._decoder
        if decoder is None:
            if isinstance(piece, str):
                return piece
            decoder = self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(piece.encode("utf-8") if isinstance(piece, str) else piece)
        if not decoder.getstate()[0]:
            self._decoder = None
        return text

    def flush(self) -> str:
        """Return U+FFFD for bytes that never became a character."""
        if self._decoder is None:
            return ""
        text = self._decoder.decode(b"", True)
        self._decoder = None
        return text


class PrefixDetokenizer:
    """For any tokenizer: decodes a short window of ids twice and returns the difference.

    The window starts at the last token whose text is out, so that rules about neighbours (a
    leading space, byte fall-back) see one. Byte tokens that are no UTF-8 and follow valid ones may
    differ from one-shot decoding, which judges the whole run of them at once.
    """

    __slots__ = ("_ids", "_skip", "_tokenizer", "_told")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = _end_of(prompt_ids, tokenizer)
        self._told = len(self._ids)
        """How many of ``_ids`` have their text out."""

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes."""
        self._ids.append(token_id)
        fresh = self._fresh()
        is_partial = fresh.endswith(REPLACEMENT) and len(self._ids) - self._told < _MAX_HELD
        if not fresh or is_partial:
            return ""
        self._ids = self._ids[self._told :]
        self._told = len(self._ids)
        return fresh

    def flush(self) -> str:
        """Return the text of the tokens still held."""
        fresh = self._fresh()
        self._ids, self._told = [], 0
        return fresh

    def _fresh(self) -> str:
        before = self._decode(self._ids[: self._told])
        return self._decode(self._ids)[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)


def _end_of(prompt_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the prompt's last ids: some with text among them, and no half of a character first."""
    num_with_text = 0
    begin = len(prompt_ids)
    while begin and num_with_text < _NEIGHBOURS:
        begin -= 1
        token_id = prompt_ids[begin]
        is_whole = isinstance(tokenizer.pieces[token_id], str)
        num_with_text += is_whole and token_id not in tokenizer.special_ids
    return list(prompt_ids[begin:])
