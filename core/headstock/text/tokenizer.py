"""Text to token ids and back, over the ``tokenizers`` library.

Knows no model: where the files are is the checkpoint room's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import tokenizers

from headstock.errors import CheckpointError
from headstock.text import gguf_vocab
from headstock.text.pieces import PieceTable

_NAMED_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """One model's tokenizer, safe to use from several threads.

    Args:
        backend: The tokenizer itself.
        special: Named special tokens, such as ``bos_token``, as chat templates see them.
        chat_template: The model's own template source, if it has one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special = dict(special or {})
        self.chat_template = chat_template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.longest_token = max(map(len, backend.get_vocab()), default=1)
        """Characters of the longest token: so many a token can stand for, at most."""
        self.pieces = PieceTable(self)

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
        try:
            text = Path(path).read_text(encoding="utf-8")
            # The library raises plain Exception for whatever it cannot parse.
            backend = tokenizers.Tokenizer.from_str(text)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read: {error.strerror}.",
                remedy="Check the path, or pass --tokenizer.",
            ) from error
        except Exception as error:
            raise CheckpointError(
                f"{path} is no tokenizer this version can read: {error}.",
                remedy="Download the model again, or pass --tokenizer.",
            ) from error
        return cls(backend, special=special, chat_template=chat_template)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer files of a Hugging Face model folder.

        Raises:
            CheckpointError: There is no ``tokenizer.json``, or a file does not parse.
        """
        folder = Path(folder)
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(_read_json(folder / "special_tokens_map.json"))
        special |= _special_tokens(config)
        template_file = folder / "chat_template.jinja"
        if template_file.is_file():
            template = template_file.read_text(encoding="utf-8")
        else:
            template = _template_of(config.get("chat_template"))
        return cls.from_file(folder / "tokenizer.json", special=special, chat_template=template)

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
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

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


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}.", remedy="Download the model again."
        ) from error
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Return the named special tokens, written either as text or as an object with ``content``."""
    named: dict[str, str] = {}
    for name in _NAMED_SPECIAL:
        value = config.get(name)
        text = value
        if isinstance(value, Mapping):
            text = cast("Mapping[str, object]", value).get("content")
        if isinstance(text, str):
            named[name] = text
    return named


def _template_of(value: object) -> str | None:
    """Return the default template: older files keep a list of named ones."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Iterable):
        return None
    items = [
        cast("Mapping[str, object]", item)
        for item in cast("Iterable[object]", value)
        if isinstance(item, Mapping)
    ]
    named = {item.get("name"): item.get("template") for item in items}
    template = named.get("default")
    return template if isinstance(template, str) else None
