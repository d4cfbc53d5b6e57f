"""Messages to bytes and back: msgpack, decoded strictly, never pickle."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headstock.errors import RequestError
from headstock.requests.token_ids import decode_ids, encode_ids
from headstock.wire.messages import FromEngine, ToEngine


class Who(msgspec.Struct, frozen=True):
    """What can be read of a message that as a whole cannot."""

    id: str
    attempt: int = 0


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_ids)
_to_engine = msgspec.msgpack.Decoder(list[ToEngine], dec_hook=decode_ids)
_one_to_engine = msgspec.msgpack.Decoder(ToEngine, dec_hook=decode_ids)
_raws = msgspec.msgpack.Decoder(list[msgspec.Raw])
_who = msgspec.msgpack.Decoder(Who)
_from_engine = msgspec.msgpack.Decoder(list[FromEngine])


def encode(messages: Sequence[ToEngine] | Sequence[FromEngine]) -> bytes:
    """Return one frame that holds ``messages``, in order."""
    return _encoder.encode(messages)


def encode_one(message: ToEngine) -> bytes:
    """Return ``message`` encoded; :func:`join` makes a frame of several.

    Raises:
        RequestError: It holds what cannot be encoded, such as an integer of more than 64 bits.
    """
    try:
        return _encoder.encode(message)
    except (OverflowError, TypeError, ValueError) as error:
        raise RequestError(
            f"The request cannot be sent to the engine: {error}.",
            remedy="Report it: its values should have been refused before.",
            code="internal_error",
        ) from error


def join(encoded: Sequence[bytes]) -> bytes:
    """Return one frame of messages that :func:`encode_one` encoded."""
    count = len(encoded)
    if count < 16:
        head = bytes([0x90 | count])
    elif count < 2**16:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(encoded)


def decode_to_engine(frame: bytes) -> list[ToEngine]:
    """Return the messages of a frame from an API process.

    Raises:
        msgspec.ValidationError: It holds something else.
    """
    return _to_engine.decode(frame)


def decode_each_to_engine(
    frame: bytes,
) -> tuple[list[ToEngine], list[tuple[Who | None, msgspec.DecodeError]]]:
    """Return the messages of a frame that can be read, and whose the others are, with the reason.

    Raises:
        msgspec.DecodeError: It is no list at all.
    """
    messages: list[ToEngine] = []
    faults: list[tuple[Who | None, msgspec.DecodeError]] = []
    for raw in _raws.decode(frame):
        try:
            messages.append(_one_to_engine.decode(raw))
        except msgspec.DecodeError as error:
            faults.append((_whose(raw), error))
    return messages, faults


def _whose(raw: msgspec.Raw) -> Who | None:
    try:
        return _who.decode(raw)
    except msgspec.DecodeError:
        return None


def decode_from_engine(frame: bytes) -> list[FromEngine]:
    """Return the messages of a frame from an engine process.

    Raises:
        msgspec.ValidationError: It holds something else.
    """
    return _from_engine.decode(frame)
