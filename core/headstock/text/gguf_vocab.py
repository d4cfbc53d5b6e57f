"""A fast tokenizer built from the vocabulary that a GGUF file carries.

Source: the GGUF specification's ``tokenizer.ggml.*`` keys; the split patterns are those of the
tokenizers that the named pre-tokenizers stand for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from headstock.errors import CheckpointError, UnsupportedError

_CONTROL = 3
_USER_DEFINED = 4
_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
}
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "llama-bpe": _LETTERS + r"|\p{N}{1,3}" + _REST,
    "qwen2": _LETTERS + r"|\p{N}" + _REST,
}


class GGUFVocabulary(Protocol):
    """What a GGUF file says of its tokenizer; ``checkpoint.GGUFTokenizer`` is one."""

    @property
    def model(self) -> str:
        """Kind of tokenizer: ``gpt2`` is byte-level BPE."""
        ...

    @property
    def pre(self) -> str:
        """Name of the splitting rule before BPE; "" when not given."""
        ...

    @property
    def tokens(self) -> Sequence[str]:
        """Text of each id."""
        ...

    @property
    def types(self) -> Sequence[int]:
        """Kind of each id: 3 is control, 4 user defined. May be empty."""
        ...

    @property
    def merges(self) -> Sequence[str]:
        """BPE merges, best first, the two parts separated by a space."""
        ...

    @property
    def chat_template(self) -> str | None:
        """Jinja source."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids by role: ``bos``, ``eos``, ``unknown``, ``padding``."""
        ...

    @property
    def flags(self) -> Mapping[str, bool]:
        """Such as ``add_bos_token``, where given."""
        ...


def build_tokenizer(vocabulary: GGUFVocabulary) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        UnsupportedError: A vocabulary or a pre-tokenizer that is not known here.
        CheckpointError: It has no tokens or no merges.
    """
    if vocabulary.model != "gpt2":
        raise UnsupportedError(
            f"The GGUF file has a {vocabulary.model!r} tokenizer; byte-level BPE ('gpt2') is"
            " supported.",
            remedy="Pass --tokenizer with the folder of the original model.",
        )
    if not vocabulary.tokens or not vocabulary.merges:
        raise CheckpointError(
            f"The GGUF file has {len(vocabulary.tokens)} tokens and"
            f" {len(vocabulary.merges)} merges.",
            remedy="Convert the model again with its tokenizer, or pass --tokenizer.",
        )
    merges = [merge.partition(" ") for merge in vocabulary.merges]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(vocabulary.tokens)},
        merges=[(left, right) for left, _, right in merges],
        ignore_merges=vocabulary.pre == "llama-bpe",
    )
    tokenizer = Tokenizer(model)
    if vocabulary.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    splitter = _pre_tokenizer(vocabulary.pre)
    tokenizer.pre_tokenizer = splitter  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    _add_special(tokenizer, vocabulary)
    _add_bos(tokenizer, vocabulary)
    return tokenizer


def special_tokens(vocabulary: GGUFVocabulary) -> dict[str, str]:
    """Return the named special tokens, such as ``bos_token``, that the file declares."""
    tokens = vocabulary.tokens
    ids = {name: vocabulary.special_ids.get(role, -1) for name, role in _ROLES.items()}
    return {name: tokens[index] for name, index in ids.items() if 0 <= index < len(tokens)}


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre in ("", "default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    pattern = _SPLITS.get(pre)
    if pattern is None:
        known = ", ".join(sorted(["default", "gpt-2", "smollm", *_SPLITS]))
        raise UnsupportedError(
            f"The GGUF file's pre-tokenizer {pre!r} is not known; these are: {known}.",
            remedy="Pass --tokenizer with the folder of the original model.",
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _add_special(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    added = [
        AddedToken(text, special=kind == _CONTROL, normalized=False)
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    special = [token for token in added if token.special]
    others = [token for token in added if not token.special]
    # The stub of tokenizers says list, and not of what.
    tokenizer.add_special_tokens(special)  # pyright: ignore[reportUnknownMemberType]
    tokenizer.add_tokens(others)  # pyright: ignore[reportUnknownMemberType]


def _add_bos(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    index = vocabulary.special_ids.get("bos")
    if index is None or not vocabulary.flags.get("add_bos_token"):
        return
    bos = vocabulary.tokens[index]
    tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=[bos, "$A"], special_tokens=[(bos, index)]
    )
