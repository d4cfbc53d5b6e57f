"""Text to token ids and back, over the ``tokenizers`` library.

Knows no model: where the files are is the checkpoint room's business.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
import tokenizers.models

from headstock.text import gguf_vocab
from headstock.text.folder import read_file, read_folder
from headstock.text.pieces import PieceTable


class Tokenizer:
    """One model's tokenizer, safe to use from several threads.

    Args:
        backend: The tokenizer itself.
        special: Named special tokens, such as ``bos_token``, as chat templates see them.
        chat_template: The model's own template source, if it has one.
        end_ids: Ids that end a generation beside that of ``eos_token``.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special = dict(special or {})
        self.chat_template = chat_template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.longest_token = _longest_token(backend)
        """Characters that a token can stand for, at most."""
        self.pieces = PieceTable(self)
        eos = self.special_id("eos_token")
        self.end_ids: tuple[int, ...] = tuple(
            dict.fromkeys([*([] if eos is None else [eos]), *end_ids])
        )
        """Ids that end a generation, as far as the tokenizer says."""

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        special: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            CheckpointError: The file is missing or does not parse.
        """
        return cls(read_file(path), special=special, chat_template=chat_template)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer files of a Hugging Face model folder.

        Raises:
            CheckpointError: There is no tokenizer, or a file does not parse.
            UnsupportedError: It is of a kind that is not known here.
        """
        found = read_folder(Path(folder))
        return cls(found.backend, special=found.special, chat_template=found.chat_template)

    @classmethod
    def from_gguf(cls, vocabulary: gguf_vocab.GGUFVocabulary) -> Tokenizer:
        """Build the tokenizer from what a GGUF file carries.

        Raises:
            UnsupportedError: A kind of vocabulary that is not known here.
            CheckpointError: It has no tokens or no merges.
        """
        return cls(
            gguf_vocab.build_tokenizer(vocabulary),
            special=gguf_vocab.special_tokens(vocabulary),
            chat_template=vocabulary.chat_template,
            end_ids=gguf_vocab.end_ids(vocabulary),
        )

    def exported(self, chat_template: str | None) -> dict[str, str]:
        """Return the files, by name, that `transformers` opens as this tokenizer.

        Args:
            chat_template: The one that serves.
        """
        config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        config["clean_up_tokenization_spaces"] = False
        if chat_template is not None:
            config["chat_template"] = chat_template
        return {
            "tokenizer.json": self.backend.to_str(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
        }

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_parts(
        self, texts: Sequence[str], *, keep_first: int | None = None, type_stride: int = 0
    ) -> list[int]:
        """Return the token ids of a text, or of a pair of texts, with what stands round them.

        Args:
            texts: One or two.
            keep_first: Most tokens; of a pair the longer text is cut. None: all are kept.
            type_stride: Added to ids once for each step of their token's type.
        """
        parts = [self.backend.encode(text, add_special_tokens=False) for text in texts]
        if keep_first is not None:
            room = keep_first - self.backend.num_special_tokens_to_add(len(parts) > 1)
            for part, length in zip(parts, _shares([len(p) for p in parts], room), strict=True):
                part.truncate(length)
        first, *others = parts
        whole = self.backend.post_process(first, others[0] if others else None)
        pairs = zip(whole.ids, whole.type_ids, strict=True)
        return [token_id + type_stride * kind for token_id, kind in pairs]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``token_ids``; bytes that are no UTF-8 become U+FFFD."""
        rows = [list(token_ids)]
        return self.decode_rows(rows, skip_special_tokens=skip_special_tokens)[0]

    def decode_rows(self, rows: list[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Return the text of each of ``rows``; other threads run meanwhile."""
        return self.backend.decode_batch(rows, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """Return what one token stands for by itself, special tokens by name."""
        return self.pieces.text(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one token stands for, special tokens by name."""
        return self.pieces.raw(token_id)

    def token_id(self, text: str) -> int | None:
        """Return the id of the vocabulary entry ``text``, or None."""
        return self.backend.token_to_id(text)

    def special_id(self, name: str) -> int | None:
        """Return the id of a named special token such as ``eos_token``, or None."""
        text = self.special.get(name)
        return None if text is None else self.token_id(text)


def _shares(lengths: list[int], room: int) -> list[int]:
    """Return how much of each of one or two lengths fits into ``room`` together."""
    room = max(0, room)
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    if first <= room // 2:
        return [first, min(second, room - first)]
    if second <= room // 2:
        return [min(first, room - second), second]
    if first + second <= room:
        return lengths
    more, less = room - room // 2, room // 2
    return [more, less] if first > second else [less, more]


def _longest_token(backend: tokenizers.Tokenizer) -> int:
    """Return the characters that a token can stand for: without end where words may be unknown."""
    if isinstance(backend.model, tokenizers.models.WordPiece):
        return sys.maxsize
    return max(map(len, backend.get_vocab()), default=1)
