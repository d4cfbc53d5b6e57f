"""Vocabularies and waiting, for tests of grammars."""

from __future__ import annotations

import time

from headstock.requests.grammar import Grammar
from headstock.structured.compiler import GrammarCompiler, Ticket
from headstock.structured.messages import CompileLimits
from headstock.structured.provider import Vocabulary

EOS = 256
PLACE = "headstock.structured.guidance:open_llguidance"


def byte_vocabulary(num_ids: int = 300) -> Vocabulary:
    """Return one id a byte, an EOS, some words, and ids that stand for nothing."""
    words = [b'{"', b'": ', b", ", b"true", b"abc", b"<tool>"]
    tokens = [bytes([byte]) for byte in range(256)] + [b"<eos>"] + words
    tokens += [b""] * (num_ids - len(tokens))
    return Vocabulary(tokens, special_ids=[EOS, 262], eos_ids=[EOS])


def make_compiler(
    *,
    timeout_s: float = 20.0,
    memory_bytes: int = 1 << 29,
    cache_bytes: int = 1 << 24,
    place: str = PLACE,
    num_workers: int = 2,
    num_ids: int = 300,
) -> GrammarCompiler:
    limits = CompileLimits(timeout_s, memory_bytes, num_workers)
    return GrammarCompiler(place, lambda: byte_vocabulary(num_ids), limits, cache_bytes=cache_bytes)


def wait_for(ticket: Ticket, limit_s: float = 60.0) -> Ticket:
    end_s = time.monotonic() + limit_s
    while not ticket.is_done:
        assert time.monotonic() < end_s, f"{ticket.grammar.kind} is not compiled yet"
        time.sleep(0.002)
    return ticket


def compile_one(compiler: GrammarCompiler, kind: str, text: str = "") -> Ticket:
    return wait_for(compiler.start(Grammar(kind, text, kind)))


def allowed(mask: bytes | bytearray) -> set[int]:
    return {i for i in range(8 * len(mask)) if mask[i >> 3] >> (i & 7) & 1}
