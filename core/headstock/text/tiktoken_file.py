"""Tokenizers of tiktoken's vocabulary files: a line a token, its bytes in base64 and its rank.

A rank is a token's id, and also says which pair is merged first: the one whose bytes together have
the lowest. What else a tokenizer is (how text is split, what is special) stands in code that such
folders bring, which is never run: it follows from the class that the folder names.

Source: tiktoken's README; the patterns and special tokens are those of the classes named.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headstock.checkpoint.bounded import MAX_VOCABULARY_BYTES, read_bounded
from headstock.errors import CheckpointError, UnsupportedError
from headstock.text.pieces import byte_characters
from headstock.text.splits import KIMI, LLAMA3, QWEN2

SUFFIX = ".tiktoken"
MODEL = "tiktoken.model"
MAX_TOKEN_BYTES = 1 << 10
RESERVED = "<|reserved_token_{}|>"
END = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What a class of tokenizers has beside its vocabulary.

    Attributes:
        pattern: What a word is.
        composes: Whether characters are composed first (NFC).
        marks: Special tokens that follow the vocabulary, in the order of their ids.
        num_reserved: Special tokens in all; those without a name are called by their ids. 0: as
            many as the configuration names.
        special: Named special tokens where no file says.
    """

    pattern: str
    composes: bool = False
    marks: tuple[str, ...] = ()
    num_reserved: int = 0
    special: Mapping[str, str]


_QWEN_MARKS = (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))
_PLAIN = Scheme(pattern=LLAMA3, special={})
SCHEMES: Mapping[str, Scheme] = {
    "QWenTokenizer": Scheme(
        pattern=QWEN2, composes=True, marks=_QWEN_MARKS, special={"eos_token": END}
    ),
    "TikTokenTokenizer": Scheme(pattern=KIMI, num_reserved=256, special={}),
    "PreTrainedTokenizerFast": _PLAIN,
    "PreTrainedTokenizer": _PLAIN,
    "TokenizersBackend": _PLAIN,
}
"""By the class that ``tokenizer_config.json`` names; transformers' own read a vocabulary as Llama 3
has it."""


def find_file(folder: Path) -> Path | None:
    """Return the vocabulary in ``folder``, or None.

    Raises:
        CheckpointError: There are several.
    """
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if (folder / MODEL).is_file():
        found.append(folder / MODEL)
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} has several vocabularies: {', '.join(file.name for file in found)}.",
            remedy="Keep the model's own.",
        )
    return found[0] if found else None


def find_scheme(file: Path, config: Mapping[str, Any]) -> Scheme:
    """Return what the folder's class has beside the vocabulary ``file``.

    Raises:
        UnsupportedError: The class is not known.
    """
    kind = str(config.get("tokenizer_class"))
    if kind not in SCHEMES:
        raise UnsupportedError(
            f"{file} is of a tokenizer_class {kind!r}; how it splits text is known of"
            f" {', '.join(SCHEMES)}.",
            remedy="Save a tokenizer.json with transformers, or pass --tokenizer.",
        )
    return SCHEMES[kind]


def build(file: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a vocabulary, the special tokens behind it added.

    Raises:
        CheckpointError: The file is damaged.
        UnsupportedError: The class is not known.
    """
    scheme = find_scheme(file, config)
    ranks = read_ranks(file)
    vocab, merges = _as_merges(ranks)
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    if scheme.composes:
        backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(scheme.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    names = _special_names(scheme, config, len(ranks))
    backend.add_tokens(  # pyright: ignore[reportUnknownMemberType]
        [AddedToken(name, special=True, normalized=False) for name in names]
    )
    return backend


def read_ranks(file: Path) -> dict[bytes, int]:
    """Return the rank of each token.

    Raises:
        CheckpointError: A line is no token, or ranks are missing.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in read_bounded(file, MAX_VOCABULARY_BYTES).splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise _damaged(file, f"has a line that is not a token and rank: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise _damaged(file, f"has {len(ranks)} tokens whose ranks are not 0 to {len(ranks) - 1}")
    lacking = sum(bytes([value]) not in ranks for value in range(256))
    if lacking or max(map(len, ranks)) > MAX_TOKEN_BYTES:
        raise _damaged(file, f"lacks {lacking} of 256 single bytes, or has a token too long")
    return ranks


def _as_merges(ranks: Mapping[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens in byte-level characters, and every pair that makes one, best first."""
    characters = {value: character for character, value in byte_characters().items()}
    written = {token: "".join(characters[value] for value in token) for token in ranks}
    merges = [
        (written[token[:place]], written[token[place:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for place in range(1, len(token))
        if token[:place] in ranks and token[place:] in ranks
    ]
    return {text: ranks[token] for token, text in written.items()}, merges


def _special_names(scheme: Scheme, config: Mapping[str, Any], begin: int) -> list[str]:
    """Return the special tokens from id ``begin`` on; ids without a name have one of their own."""
    given: Any = config.get("added_tokens_decoder")
    added = cast("dict[Any, Any]", given) if isinstance(given, dict) else {}
    named = dict(enumerate(scheme.marks, begin))
    for index, token in added.items():
        text = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
        if str(index).isdecimal() and isinstance(text, str) and text:
            named[int(index)] = text
    end = begin + scheme.num_reserved
    end = max(end, *(index + 1 for index in named)) if named else end
    if end - begin > begin:
        return []  # ids far away: what the configuration says is wrong, and is added as it can be
    return [named.get(index, RESERVED.format(index)) for index in range(begin, end)]


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} {what}.", remedy="Download the file again.")
