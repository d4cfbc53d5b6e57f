"""What each token stands for by itself: its bytes, and its text where they are whole characters.

A byte-level tokenizer's text is the concatenation of its tokens' bytes, so incremental
detokenising is a table look-up. Other tokenizers join tokens by rules of their own; for them
:attr:`PieceTable.is_byte_level` is False and only whole sequences can be decoded.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstock.text.tokenizer import Tokenizer


class PieceTable(dict[int, str | bytes]):
    """Token id to text, or to bytes when they are not whole characters; filled as ids are met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        decoder = tokenizer.backend.decoder
        kind = json.loads(decoder.__getstate__())["type"] if decoder is not None else None
        self.is_byte_level = kind == "ByteLevel"

    def __missing__(self, token_id: int) -> str | bytes:
        """Work out a piece and keep it."""
        raw = self._bytes_of(token_id)
        try:
            piece: str | bytes = raw.decode("utf-8")
        except UnicodeDecodeError:
            piece = raw
        self[token_id] = piece
        return piece

    def raw(self, token_id: int) -> bytes:
        """Return the bytes of a token; an id without an entry has none."""
        piece = self[token_id]
        return piece.encode("utf-8") if isinstance(piece, str) else piece

    def text(self, token_id: int) -> str:
        """Return the text of a token, U+FFFD standing for what is no character by itself."""
        piece = self[token_id]
        return piece if isinstance(piece, str) else piece.decode("utf-8", "replace")

    def _bytes_of(self, token_id: int) -> bytes:
        backend = self._tokenizer.backend
        name = backend.id_to_token(token_id)
        if name is None:
            return b""
        if self.is_byte_level:
            try:
                return bytes(_BYTE_OF[char] for char in name)
            except KeyError:  # an added token with characters of its own
                return name.encode("utf-8")
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes.fromhex(name[3:5])
        if token_id in self._tokenizer.special_ids:
            return name.encode("utf-8")
        return name.replace("\u2581", " ").encode("utf-8")


def byte_characters() -> dict[str, int]:
    """Return the characters that byte-level BPE writes for each byte.

    Printable Latin-1 bytes stand for themselves; the others follow from U+0100 on, in order.
    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_OF = byte_characters()
