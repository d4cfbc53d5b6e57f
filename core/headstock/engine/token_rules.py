"""Which ids a request may draw by the caller's lists and limits: ids, bad words, thoughts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headstock.wire.requests import ThoughtLimit


class TokenRules:
    """The lists of one request, as bits.

    Args:
        allowed_ids: Nothing else may be drawn; none: everything may.
        banned: Sequences of ids that the output must not have: the last id of one may not follow
            the ids before it.
        vocab_size: Ids of the model.
        thoughts: How long the request may think; None: without end.
    """

    def __init__(
        self,
        allowed_ids: Sequence[int],
        banned: Sequence[Sequence[int]],
        vocab_size: int,
        thoughts: ThoughtLimit | None = None,
    ) -> None:
        self._size = -(-vocab_size // 32) * 4
        self._always = _bits(allowed_ids) if allowed_ids else (1 << vocab_size) - 1
        self._always &= ~_bits(ids[0] for ids in banned if len(ids) == 1)
        self._longer = [(list(ids[:-1]), ids[-1]) for ids in banned if len(ids) > 1]
        self._thoughts = None if thoughts is None else _Thoughts(thoughts)

    def mask(self, outputs: Sequence[int]) -> bytearray:
        """Return what may follow ``outputs``: a bit an id, in little-endian words of 32 bits."""
        bits = self._forced(outputs) or self._bits_after(outputs)
        return bytearray(bits.to_bytes(self._size, "little"))

    def restrict(self, mask: bytearray, outputs: Sequence[int]) -> None:
        """Take out of ``mask`` what may not follow ``outputs``.

        Thoughts whose budget is spent amid a character go on to the end of that.
        """
        given = int.from_bytes(mask, "little")
        bits = given & self._forced(outputs) or given & self._bits_after(outputs)
        mask[:] = bits.to_bytes(len(mask), "little")

    def _forced(self, outputs: Sequence[int]) -> int:
        """Return the bit of what must follow ``outputs``; 0: nothing must."""
        if self._thoughts is None or not self._thoughts.are_over(outputs):
            return 0
        return 1 << self._thoughts.end_id

    def _bits_after(self, outputs: Sequence[int]) -> int:
        bits = self._always
        for head, last in self._longer:
            if list(outputs[-len(head) :]) == head:
                bits &= ~(1 << last)
        return bits


class _Thoughts:
    """Follows one output, which only grows, through its thoughts."""

    def __init__(self, limit: ThoughtLimit) -> None:
        self.end_id = limit.end_id
        self._budget = limit.budget
        self._begin_ids = limit.begin_ids
        self._begun_at = 0 if limit.is_open else None
        self._num_seen = 0
        self._has_ended = False

    def are_over(self, outputs: Sequence[int]) -> bool:
        """Whether the budget is spent, so that the end of the thoughts must be drawn now."""
        for place in range(self._num_seen, len(outputs)):
            if self._begun_at is None:
                size = len(self._begin_ids)
                if place + 1 >= size and list(outputs[place + 1 - size : place + 1]) == (
                    self._begin_ids
                ):
                    self._begun_at = place + 1
            elif outputs[place] == self.end_id:
                self._has_ended = True
        self._num_seen = len(outputs)
        if self._has_ended or self._begun_at is None:
            return False
        return len(outputs) - self._begun_at >= self._budget


def _bits(ids: Iterable[int]) -> int:
    bits = bytearray()
    for token_id in ids:
        byte = token_id >> 3
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits)))
        bits[byte] |= 1 << (token_id & 7)
    return int.from_bytes(bits, "little")
