"""Tokenizers of SentencePiece vocabularies, from ``tokenizer.model`` or from a GGUF file.

Source: the message types ModelProto, TrainerSpec and NormalizerSpec of SentencePiece's
``sentencepiece_model.proto``, and the encoding rules of Protocol Buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headstock.errors import CheckpointError

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces; GGUF files use the same numbers."""
_UNIGRAM = 1
MAX_PIECE, MAX_CHARACTERS = 1 << 10, 3 << 20
"""Characters of the longest piece, and of all: each place in each is tried for a merge. 262,000
pieces have some two million."""
MAX_FIELDS = 9 << 17
"""Of a file, in all its messages: each piece is one, and has three. 262,000 pieces fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A SentencePiece vocabulary.

    Attributes:
        texts: Of each id.
        scores: Of each id; a merge with a higher one comes first.
        kinds: Of each id, such as :data:`NORMAL`.
        is_unigram: Whether the likeliest segmentation is taken; else pairs are merged.
        adds_prefix: Whether a text begins with a space of its own.
        squeezes: Whether spaces at the ends are dropped and runs of spaces made one.
        charsmap: Compiled normalisation rules; empty for none.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    is_unigram: bool = False
    adds_prefix: bool = True
    squeezes: bool = False
    charsmap: bytes = b""


Prefixed = Literal["first", "every chunk", "always"]
"""What gets a space of its own: the text's begin, or also what follows an added token, unless a
space is there already; or both always, as SentencePiece itself has it."""


def build(pieces: Pieces, prefixed: Prefixed = "first") -> Tokenizer:
    """Return the tokenizer, its control and user-defined pieces added.

    Args:
        pieces: The vocabulary.
        prefixed: What gets a space of its own, where the vocabulary asks for one.

    Raises:
        CheckpointError: The vocabulary has no pieces, no unknown one, or too long ones.
    """
    num_characters = sum(map(len, pieces.texts))
    if num_characters > MAX_CHARACTERS or max(map(len, pieces.texts), default=0) > MAX_PIECE:
        raise CheckpointError(
            f"The SentencePiece vocabulary has {num_characters} characters, or a piece of more than"
            f" {MAX_PIECE}; {MAX_CHARACTERS} are read.",
            remedy="Download the tokenizer again, or pass --tokenizer.",
        )
    unknown = [index for index, kind in enumerate(pieces.kinds) if kind == UNKNOWN]
    if not pieces.texts or not unknown:
        raise CheckpointError(
            f"The SentencePiece vocabulary has {len(pieces.texts)} pieces, {len(unknown)} of them"
            " for what is unknown.",
            remedy="Download the tokenizer again, or pass --tokenizer.",
        )
    tokenizer = Tokenizer(_model(pieces, unknown[0]))
    is_always = pieces.adds_prefix and prefixed == "always"
    # The libraries' stubs make these attributes read-only.
    tokenizer.normalizer = _normalizer(  # pyright: ignore[reportAttributeAccessIssue]
        pieces, prepends=is_always
    )
    scheme = "never"
    if pieces.adds_prefix and not is_always:
        scheme = "always" if prefixed == "every chunk" else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(  # pyright: ignore[reportAttributeAccessIssue]
        replacement=SPACE, prepend_scheme=scheme, split=pieces.is_unigram
    )
    steps: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if pieces.adds_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    added = [
        AddedToken(text, special=kind != USER_DEFINED, normalized=False)
        for text, kind in zip(pieces.texts, pieces.kinds, strict=True)
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)  # pyright: ignore[reportUnknownMemberType]
    return tokenizer


def _model(pieces: Pieces, unknown: int) -> models.Model:
    has_bytes = BYTE in pieces.kinds
    if pieces.is_unigram:
        vocabulary = list(zip(pieces.texts, pieces.scores, strict=True))
        return models.Unigram(vocabulary, unknown, has_bytes)
    return models.BPE(
        vocab={text: index for index, text in enumerate(pieces.texts)},
        merges=merges_of(pieces),
        unk_token=pieces.texts[unknown],
        fuse_unk=True,
        byte_fallback=has_bytes,
    )


def merges_of(pieces: Pieces) -> list[tuple[str, str]]:
    """Return every way to make a normal piece of two others, best piece first."""
    normal = {
        text: (-pieces.scores[index], index)
        for index, text in enumerate(pieces.texts)
        if pieces.kinds[index] in (NORMAL, USER_DEFINED)
    }
    ranked = [
        (*rank, normal[text[:at]][1], text[:at], text[at:])
        for text, rank in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _normalizer(pieces: Pieces, *, prepends: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.squeezes:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if prepends:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps)


def read_model(data: bytes) -> Pieces:
    """Read a ``tokenizer.model``.

    Raises:
        ValueError: It is no such file.
    """
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    left = iter(range(MAX_FIELDS))
    for number, value in _fields(data, left):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise ValueError(f"field {number} is not a message")
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value, left))
            texts.append(_bytes(piece.get(1, b"")).decode("utf-8"))
            scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
            kinds.append(_number(piece.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value, left))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value, left))
    return Pieces(
        texts=texts,
        scores=scores,
        kinds=kinds,
        is_unigram=_number(trainer.get(3, _UNIGRAM)) == _UNIGRAM,
        adds_prefix=bool(_number(normalizer.get(3, 1))),
        squeezes=bool(_number(normalizer.get(4, 1))),
        charsmap=_bytes(normalizer.get(2, b"")),
    )


def _fields(data: bytes, left: Iterator[int]) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message; 4 and 8 bytes as they stand.

    ``left`` has an item for each field that may still be read.
    """
    at = 0
    while at < len(data):
        if next(left, None) is None:
            raise ValueError(f"it has more than {MAX_FIELDS} fields")
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value, at = _varint(data, at)
            case 1 | 5 as wire:
                size = 8 if wire == 1 else 4
                value, at = data[at : at + size], at + size
            case 2:
                size, at = _varint(data, at)
                value, at = data[at : at + size], at + size
            case wire:
                raise ValueError(f"wire type {wire} at byte {at}")
        if at > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer at ``at``, and where the next thing is."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError(f"no integer ends at byte {at}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("an integer where bytes are expected")
    return value


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where an integer is expected")
    return value
