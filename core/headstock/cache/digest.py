"""Names for prefixes: the same tokens in the same namespace have the same id in every process."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache

DIGEST_BYTES = 16
FEW_PAGES = 8
"""A prompt of fewer pages is digested in less time than it is compared in."""


@lru_cache(maxsize=1024)
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


def child_id(parent: bytes, token_ids: Iterable[int], content: bytes = b"") -> bytes:
    """Return the id of the prefix ``parent`` followed by one page of tokens.

    Args:
        parent: Id of what comes before.
        token_ids: As many in every page.
        content: Digests of the images that some of the tokens stand for, one after another.
    """
    page = parent + _little_endian(token_ids) + content
    return hashlib.blake2b(page, digest_size=DIGEST_BYTES).digest()


NO_CONTENTS: Mapping[int, bytes] = {}


def chain_ids(
    parent: bytes,
    token_ids: Iterable[int],
    page_tokens: int,
    contents: Mapping[int, bytes] = NO_CONTENTS,
) -> list[bytes]:
    """Return the ids of every full page of ``token_ids``, each chained to the one before.

    Args:
        parent: Id of what comes before.
        token_ids: Of all pages.
        page_tokens: Tokens a page holds.
        contents: Of pages by their number: see :func:`child_id`.
    """
    if contents:
        return _chain_with_contents(parent, _little_endian(token_ids), 4 * page_tokens, contents)
    ids: list[bytes] = []
    _chain(parent, _little_endian(token_ids), 4 * page_tokens, ids)
    return ids


class RecentChains:
    """Ids of prompts, where what a recent prompt began with is not digested again.

    Of the prompts with one first page the last one is remembered. A burst of requests with a common
    prefix so costs comparisons of bytes, not digests.

    Args:
        page_tokens: Tokens of a page.
        max_tokens: Tokens of the prompts remembered; beyond, the least recently used is forgotten.
    """

    def __init__(self, page_tokens: int, max_tokens: int = 1 << 21) -> None:
        self._page_bytes = 4 * page_tokens
        self._max_bytes = 4 * max_tokens
        self._num_bytes = 0
        self._recent: OrderedDict[bytes, tuple[bytes, list[bytes]]] = OrderedDict()
        """By the id of its first page: a prompt's tokens, and the ids of its pages."""

    def ids(self, parent: bytes, token_ids: array[int]) -> list[bytes]:
        """Return what :func:`chain_ids` does, of 32-bit ids; the list is not to be changed."""
        data, size = _little_endian(token_ids), self._page_bytes
        ids: list[bytes] = []
        if len(data) < FEW_PAGES * size:
            _chain(parent, data, size, ids)
            return ids
        _chain(parent, data[:size], size, ids)
        first = ids[0]
        recent = self._recent.pop(first, None)
        if recent is not None:
            known, known_ids = recent
            self._num_bytes -= len(known)
            ids = known_ids[: _common_pages(data, known, size)]
        _chain(ids[-1], data[len(ids) * size :], size, ids)
        self._recent[first] = (data, ids)
        self._num_bytes += len(data)
        while self._num_bytes > self._max_bytes:
            _, (forgotten, _) = self._recent.popitem(last=False)
            self._num_bytes -= len(forgotten)
        return ids


def _chain_with_contents(
    parent: bytes, data: bytes, page_bytes: int, contents: Mapping[int, bytes]
) -> list[bytes]:
    """Return the ids of the full pages of ``data``, some of which stand for images."""
    ids: list[bytes] = []
    for begin in range(0, len(data) - page_bytes + 1, page_bytes):
        page = parent + data[begin : begin + page_bytes] + contents.get(len(ids), b"")
        parent = hashlib.blake2b(page, digest_size=DIGEST_BYTES).digest()
        ids.append(parent)
    return ids


def _chain(parent: bytes, data: bytes, page_bytes: int, ids: list[bytes]) -> None:
    """Append the ids of the full pages of ``data``, which follow ``parent``."""
    digest = hashlib.blake2b
    for begin in range(0, len(data) - page_bytes + 1, page_bytes):
        page = data[begin : begin + page_bytes]
        parent = digest(parent + page, digest_size=DIGEST_BYTES).digest()
        ids.append(parent)


def _common_pages(data: bytes, other: bytes, page_bytes: int) -> int:
    """Return how many leading pages are equal, of which the first is known to be."""
    low, high = 1, min(len(data), len(other)) // page_bytes
    while low < high:
        middle = (low + high + 1) // 2
        begin, end = low * page_bytes, middle * page_bytes
        if data[begin:end] == other[begin:end]:
            low = middle
        else:
            high = middle - 1
    return low


def _little_endian(token_ids: Iterable[int]) -> bytes:
    if isinstance(token_ids, array) and sys.byteorder == "little":
        return token_ids.tobytes()
    words = array("I", token_ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
