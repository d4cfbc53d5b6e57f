"""Messages to bytes and back: msgpack, decoded strictly, never pickle."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headstock.wire.messages import FromEngine, ToEngine

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(list[ToEngine])
_from_engine = msgspec.msgpack.Decoder(list[FromEngine])


def encode(messages: Sequence[ToEngine] | Sequence[FromEngine]) -> bytes:
    """Return one frame that holds ``messages``, in order."""
    return _encoder.encode(messages)


def decode_to_engine(frame: bytes) -> list[ToEngine]:
    """Return the messages of a frame from an API process.

    Raises:
        msgspec.ValidationError: It holds something else.
    """
    return _to_engine.decode(frame)


def decode_from_engine(frame: bytes) -> list[FromEngine]:
    """Return the messages of a frame from an engine process.

    Raises:
        msgspec.ValidationError: It holds something else.
    """
    return _from_engine.decode(frame)
