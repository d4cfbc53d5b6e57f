"""What the engine and the process that compiles say to each other, as frames on a pipe."""

from __future__ import annotations

import struct

import msgspec

from headstock.requests.grammar import Grammar

_LENGTH = struct.Struct("<I")


class CompileLimits(msgspec.Struct, frozen=True, array_like=True):
    """What compiling one grammar may take.

    Attributes:
        timeout_s: CPU and wall time. Seconds.
        memory_bytes: Beside what the process has without a grammar.
        num_workers: Grammars compiled at once.
    """

    timeout_s: float
    memory_bytes: int
    num_workers: int


class Setup(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Who compiles, for which vocabulary. The first frame."""

    place: str
    tokens: list[bytes]
    special_ids: list[int]
    eos_ids: list[int]
    limits: CompileLimits


class Compile(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Translate and compile a grammar."""

    call: int
    grammar: Grammar


class Compiled(msgspec.Struct, frozen=True, array_like=True):
    """What came of it.

    Attributes:
        call: Which.
        text: The provider's own text of it; "" when it is refused.
        problem: Why it is refused.
        remedy: What the caller can do.
        code: ``grammar_too_complex`` or ``invalid_grammar``.
        size_bytes: Memory that it took, at most.
    """

    call: int
    text: str = ""
    problem: str = ""
    remedy: str = ""
    code: str = ""
    size_bytes: int = 0


encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Setup | Compile).decode
decode_compiled = msgspec.msgpack.Decoder(Compiled).decode


def frame(body: bytes) -> bytes:
    """Return ``body`` with its length before it."""
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Parts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was read; return the frames that are whole now."""
        buffer = self._buffer
        buffer += data
        found: list[bytes] = []
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            found.append(bytes(buffer[_LENGTH.size : end]))
            del buffer[:end]
        return found
