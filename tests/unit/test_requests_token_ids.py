"""Token ids: their bytes, and what a message may hold."""

import sys

import msgspec
import pytest

from headstock.requests import SamplingParams, TokenIds
from headstock.wire import codec
from headstock.wire.messages import Submit


def test_ids_are_little_endian_32_bit_numbers() -> None:
    assert TokenIds([1, 0x01020304]).to_bytes() == b"\x01\0\0\0\x04\x03\x02\x01"
    assert TokenIds.from_bytes(b"\x01\0\0\0\x04\x03\x02\x01").tolist() == [1, 0x01020304]


def test_an_id_takes_four_bytes() -> None:
    assert sys.getsizeof(TokenIds(range(100_000))) < 4.1 * 100_000


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_what_is_no_32_bit_number_is_no_id(token_id: int) -> None:
    with pytest.raises(OverflowError):
        TokenIds([token_id])


def test_a_message_holds_ids_as_bytes_and_gives_them_back() -> None:
    submit = Submit(id="a", prompt_ids=TokenIds(range(50_000, 51_000)), params=SamplingParams())
    frame = codec.encode([submit])
    assert len(frame) < 4_600
    (read,) = codec.decode_to_engine(frame)
    assert isinstance(read, Submit)
    assert isinstance(read.prompt_ids, TokenIds)
    assert read.prompt_ids == submit.prompt_ids


@pytest.mark.parametrize("ids", [b"\x01\0\0", [1, 2], "ab"])
def test_what_is_no_whole_number_of_ids_is_refused(ids: object) -> None:
    frame = msgspec.msgpack.encode([{"type": "Submit", "id": "a", "prompt_ids": ids, "params": {}}])
    with pytest.raises(msgspec.ValidationError, match="prompt_ids"):
        codec.decode_to_engine(frame)
