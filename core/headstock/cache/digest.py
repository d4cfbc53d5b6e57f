"""Names for prefixes: the same tokens in the same namespace have the same id in every process."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable

DIGEST_BYTES = 16


def root_id(namespace: str, adapter: str = "") -> bytes:
    """Return the id of the empty prefix of ``namespace``, computed with ``adapter``.

    The parts are joined so that no two pairs that differ are taken for each other.
    """
    text = namespace.encode("utf-8", "surrogatepass")
    if adapter:
        name = adapter.encode("utf-8", "surrogatepass")
        text = b"%d:%s%s" % (len(name), name, text)
    person = b"headstock-lora" if adapter else b"headstock-root"
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES, person=person).digest()


def child_id(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """Return the id of the prefix ``parent`` followed by one page of tokens."""
    return hashlib.blake2b(parent + _little_endian(token_ids), digest_size=DIGEST_BYTES).digest()


def chain_ids(parent: bytes, token_ids: Iterable[int], page_tokens: int) -> list[bytes]:
    """Return the ids of every full page of ``token_ids``, each chained to the one before."""
    data = _little_endian(token_ids)
    page_bytes = 4 * page_tokens
    ids: list[bytes] = []
    for begin in range(0, len(data) - page_bytes + 1, page_bytes):
        page = data[begin : begin + page_bytes]
        parent = hashlib.blake2b(parent + page, digest_size=DIGEST_BYTES).digest()
        ids.append(parent)
    return ids


def _little_endian(token_ids: Iterable[int]) -> bytes:
    words = array("I", token_ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
