"""Every message that there is can be sent: it is in one of the two unions."""

from __future__ import annotations

from typing import get_args

import msgspec

from headstock.wire.base import Message
from headstock.wire.messages import FromEngine, ToEngine


def test_every_message_goes_one_way() -> None:
    to, back = set(get_args(ToEngine)), set(get_args(FromEngine))
    assert to.isdisjoint(back)
    assert to | back == set(Message.__subclasses__())


def test_a_messages_tag_is_its_name() -> None:
    tags = {kind.__struct_config__.tag for kind in Message.__subclasses__()}
    assert tags == {kind.__name__ for kind in Message.__subclasses__()}
    msgspec.msgpack.Decoder(ToEngine)
    msgspec.msgpack.Decoder(FromEngine)
