"""A fast tokenizer built from the vocabulary that a GGUF file carries.

Source: the GGUF specification's ``tokenizer.ggml.*`` keys; what a file leaves open is as llama.cpp
has it in ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headstock.errors import CheckpointError, UnsupportedError
from headstock.text import sentencepiece
from headstock.text.folder import frame
from headstock.text.splits import SPLITS, Split

SENTENCEPIECE = "llama"
BYTE_LEVEL = "gpt2"
_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
}
ENDS = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "< EOT >", "_<EOT>",
        "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
        "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|fim_pad|>", "<fim-pad>",
        "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
        "<reponame>", "<|file_sep|>",
    }
)  # fmt: skip
"""Control tokens that end a generation whatever the file's keys say."""
_MESSAGE_ENDS = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
"""Where these are, ``<|end|>`` ends a message, and the generation goes on."""
_ADDED = (sentencepiece.CONTROL, sentencepiece.USER_DEFINED)


class GGUFVocabulary(Protocol):
    """What a GGUF file says of its tokenizer; ``checkpoint.GGUFTokenizer`` is one."""

    @property
    def model(self) -> str:
        """Kind of tokenizer: ``gpt2`` is byte-level BPE, ``llama`` SentencePiece BPE."""
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
    def scores(self) -> Sequence[float]:
        """SentencePiece scores. May be empty."""
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
    if vocabulary.model == SENTENCEPIECE:
        tokenizer = _sentencepiece(vocabulary)
    elif vocabulary.model == BYTE_LEVEL:
        tokenizer = _byte_level(vocabulary)
    else:
        raise UnsupportedError(
            f"The GGUF file has a {vocabulary.model!r} tokenizer; byte-level BPE ('{BYTE_LEVEL}')"
            f" and SentencePiece BPE ('{SENTENCEPIECE}') are supported.",
            remedy="Pass --tokenizer with the folder of the original model.",
        )
    adds_bos = vocabulary.model == SENTENCEPIECE or _split_of(vocabulary.pre).adds_bos
    frame(tokenizer, {"add_bos_token": adds_bos, **vocabulary.flags}, special_tokens(vocabulary))
    return tokenizer


def end_ids(vocabulary: GGUFVocabulary) -> list[int]:
    """Return the ids of the control tokens that end a generation, known by their text."""
    found = {
        text: index
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=False))
        if text in ENDS and kind in _ADDED
    }
    if any(ends <= found.keys() for ends in _MESSAGE_ENDS):
        found.pop("<|end|>", None)
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return list(found.values())


def _byte_level(vocabulary: GGUFVocabulary) -> Tokenizer:
    if not vocabulary.tokens or not vocabulary.merges:
        raise CheckpointError(
            f"The GGUF file has {len(vocabulary.tokens)} tokens and"
            f" {len(vocabulary.merges)} merges.",
            remedy="Convert the model again with its tokenizer, or pass --tokenizer.",
        )
    split = _split_of(vocabulary.pre)
    merges = [merge.partition(" ") for merge in vocabulary.merges]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(vocabulary.tokens)},
        merges=[(left, right) for left, _, right in merges],
        ignore_merges=split.ignores_merges,
    )
    tokenizer = Tokenizer(model)
    if split.composes:
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = _pre_tokenizer(split)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    _add_special(tokenizer, vocabulary)
    return tokenizer


def _sentencepiece(vocabulary: GGUFVocabulary) -> Tokenizer:
    count = len(vocabulary.tokens)
    if len(vocabulary.scores) != count or len(vocabulary.types) != count:
        raise CheckpointError(
            f"The GGUF file has {count} tokens, {len(vocabulary.scores)} scores and"
            f" {len(vocabulary.types)} types.",
            remedy="Convert the model again with its tokenizer, or pass --tokenizer.",
        )
    kinds, unknown = list(vocabulary.types), vocabulary.special_ids.get("unknown", -1)
    if sentencepiece.UNKNOWN not in kinds and 0 <= unknown < count:
        kinds[unknown] = sentencepiece.UNKNOWN  # Gemma's files have it among the control tokens.
    pieces = sentencepiece.Pieces(
        texts=vocabulary.tokens,
        scores=vocabulary.scores,
        kinds=kinds,
        adds_prefix=vocabulary.flags.get("add_space_prefix", True),
        squeezes=vocabulary.flags.get("remove_extra_whitespaces", False),
    )
    return sentencepiece.build(pieces, "always")


def special_tokens(vocabulary: GGUFVocabulary) -> dict[str, str]:
    """Return the named special tokens, such as ``bos_token``, that the file declares."""
    tokens = vocabulary.tokens
    ids = {name: vocabulary.special_ids.get(role, -1) for name, role in _ROLES.items()}
    return {name: tokens[index] for name, index in ids.items() if 0 <= index < len(tokens)}


def _split_of(pre: str) -> Split:
    split = SPLITS.get(pre)
    if split is None:
        known = ", ".join(sorted(name for name in SPLITS if name))
        raise UnsupportedError(
            f"The GGUF file's pre-tokenizer {pre!r} is not known; these are: {known}.",
            remedy="Pass --tokenizer with the folder of the original model.",
        )
    return split


def _pre_tokenizer(split: Split) -> pre_tokenizers.PreTokenizer:
    if not split.pattern and not split.parts_digits:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split.parts_digits:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _add_special(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    added = [
        AddedToken(text, special=kind == sentencepiece.CONTROL, normalized=False)
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=False)
        if kind in _ADDED
    ]
    special = [token for token in added if token.special]
    others = [token for token in added if not token.special]
    # The stub of tokenizers says list, and not of what.
    tokenizer.add_special_tokens(special)  # pyright: ignore[reportUnknownMemberType]
    tokenizer.add_tokens(others)  # pyright: ignore[reportUnknownMemberType]
