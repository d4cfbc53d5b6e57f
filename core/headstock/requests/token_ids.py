"""Token ids of a prompt, four bytes each, in memory and in messages."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:

    class _Ids(array[int]): ...  # pyright: ignore[reportIndexIssue]
else:  # Python 3.11 takes no index here
    _Ids = array


class TokenIds(_Ids):
    """A prompt's tokens; never changed once made.

    A list of numbers takes 8 bytes an entry and 32 more for each number over 256: of a request that
    waits this would be the larger part.

    Args:
        ids: 0 to 2**32 - 1 each.

    Raises:
        OverflowError: One is negative or larger.
    """

    __slots__ = ()

    def __new__(cls, ids: Iterable[int] = ()) -> Self:
        return cast("Self", super().__new__(cls, "I", ids))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the ids that :meth:`to_bytes` gave as ``data``.

        Raises:
            ValueError: It is no whole number of ids.
        """
        ids = cls()
        ids.frombytes(data)
        if sys.byteorder == "big":
            ids.byteswap()
        return ids

    def to_bytes(self) -> bytes:
        """Return the ids as little-endian 32-bit numbers."""
        if sys.byteorder == "little":
            return self.tobytes()
        swapped = array("I", self)
        swapped.byteswap()
        return swapped.tobytes()


def encode_ids(value: Any) -> bytes:
    """Return token ids as msgspec writes them: its hook for what it does not know.

    Raises:
        NotImplementedError: ``value`` is something else.
    """
    if isinstance(value, TokenIds):
        return value.to_bytes()
    raise NotImplementedError(f"a message cannot hold a {type(value).__name__}")


def decode_ids(kind: type, value: Any) -> TokenIds:
    """Return token ids from what msgspec read: its hook for what it does not know.

    Raises:
        NotImplementedError: ``kind`` is something else.
        TypeError: ``value`` is no bytes.
        ValueError: It is no whole number of ids.
    """
    if kind is not TokenIds:
        raise NotImplementedError(f"a message cannot hold a {kind.__name__}")
    if not isinstance(value, bytes):
        raise TypeError("Expected token ids as bytes")
    return TokenIds.from_bytes(value)
