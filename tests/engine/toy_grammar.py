"""Grammars over bare ids, and a compiler that takes its time.

The text "mod,min,max" allows as output ``i`` the ids that leave ``i % mod``, and at least ``min``
and at most ``max`` of them; "bad" is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstock.errors import RequestError
from headstock.requests import Grammar
from headstock.structured.compiler import Ticket

EOS = 0


@dataclass
class ToyGrammar:
    mod: int
    min: int
    max: int
    vocab_size: int

    @classmethod
    def parse(cls, text: str, vocab_size: int) -> ToyGrammar:
        mod, least, most = (int(part) for part in text.split(","))
        return cls(mod, least, most, vocab_size)

    def allowed(self, index: int) -> set[int]:
        """Return the ids that output ``index`` may be, as the library says it: the EOS among them
        where the output may end, and never else."""
        if index >= self.max:
            return {EOS}
        ids = {i for i in range(self.vocab_size) if i != EOS and i % self.mod == index % self.mod}
        return ids | {EOS} if index >= self.min else ids

    def drawable(self, index: int, stop_ids: Sequence[int]) -> set[int]:
        """Return the ids that may be drawn; none when the output is complete."""
        ids = self.allowed(index) - {EOS}
        if index >= self.min:
            rest = ids - set(stop_ids)
            return rest | set(stop_ids) if rest else set()
        return (ids - set(stop_ids)) or ids

    def matcher(self) -> ToyMatcher:
        return ToyMatcher(self)


class ToyMatcher:
    error = ""

    def __init__(self, grammar: ToyGrammar) -> None:
        self.grammar = grammar
        self.count = 0

    @property
    def can_end(self) -> bool:
        return self.count >= self.grammar.min

    def advance(self, token_ids: Sequence[int]) -> int:
        for place, token_id in enumerate(token_ids):
            if token_id == EOS or token_id not in self.grammar.allowed(self.count):
                return place
            self.count += 1
        return len(token_ids)

    def rollback(self, count: int) -> None:
        self.count -= count

    def forced(self) -> list[int]:
        return []


class ToyCompiler:
    """Compiles a grammar when :meth:`work` is called; at once where ``is_quick``."""

    eos_ids = [EOS]

    def __init__(self, vocab_size: int, *, is_quick: bool = False) -> None:
        self.vocab_size = vocab_size
        self.is_quick = is_quick
        self.tickets: list[Ticket] = []
        self.num_masks = 0
        self.is_closed = False

    def start(self, grammar: Grammar) -> Ticket:
        self.tickets.append(Ticket(grammar))
        if self.is_quick:
            self.work()
        return (self.tickets or [self.last])[-1]

    def work(self) -> None:
        if not self.tickets:
            return
        self.last = ticket = self.tickets.pop(0)
        if ticket.grammar.text == "bad":
            ticket.error = RequestError("It is bad.", remedy="None.", code="invalid_grammar")
        else:
            ticket.compiled = ToyGrammar.parse(ticket.grammar.text, self.vocab_size)
        ticket.is_done = True

    def masks(self, matchers: Sequence[ToyMatcher]) -> list[bytearray]:
        self.num_masks += len(matchers)
        found = []
        for matcher in matchers:
            mask = bytearray(-(-self.vocab_size // 32) * 4)
            for token_id in matcher.grammar.allowed(matcher.count):
                mask[token_id >> 3] |= 1 << (token_id & 7)
            found.append(mask)
        return found

    def close(self) -> None:
        self.is_closed = True
