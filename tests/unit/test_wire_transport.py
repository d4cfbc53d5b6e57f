"""Messages arrive whole, in order, and only as what they are."""

import asyncio
import stat
import threading
import time

import msgspec
import pytest

from headstock.errors import RequestError
from headstock.requests import FinishReason, SamplingParams, TokenIds
from headstock.wire import codec
from headstock.wire.messages import Abort, Crashed, Cut, Ended, State, Submit, Tokens
from headstock.wire.transport import Endpoint, Receipts, ZmqLink, ZmqMailbox, memory_pair

SUBMIT = Submit(
    id="a", prompt_ids=TokenIds([1, 2]), params=SamplingParams(stop=["x"]), stop_ids=[2]
)
ENDED = Ended(id="a", attempt=0, reason=FinishReason(kind="stop", matched="x"), num_outputs=1)
TOKENS = Tokens(ids=["a"], attempts=[0], offsets=[0], counts=[1], token_ids=[7])


def test_messages_survive_the_wire():
    sent = [SUBMIT, Abort(id="b"), Cut(id="a", attempt=0, keep=3, matched="é")]
    assert codec.decode_to_engine(codec.encode(sent)) == sent
    back = [
        TOKENS,
        ENDED,
        State(steps=1, running=0, waiting=0, free_pages=1, cached_pages=0, total_pages=1),
    ]
    assert codec.decode_from_engine(codec.encode(back)) == back


@pytest.mark.parametrize(
    "frame", [b"", b"\x93", b"\x91\x81\xa4type\xa4Bomb", codec.encode([ENDED])]
)
def test_anything_else_is_refused(frame):
    with pytest.raises(msgspec.DecodeError):
        codec.decode_to_engine(frame)


def both_kinds(check):
    """Run ``check(link, mailbox)`` over memory and over a socket, the mailbox in a thread."""

    async def over_memory():
        mailbox, link = memory_pair()
        await check(link, mailbox)

    async def over_zmq():
        endpoint = Endpoint()
        link = ZmqLink(endpoint)
        mailbox = ZmqMailbox(endpoint.address)
        try:
            await check(link, mailbox)
        finally:
            mailbox.close()
            link.close()
        assert not endpoint.directory.exists()

    asyncio.run(over_memory())
    asyncio.run(over_zmq())


def test_a_mailbox_in_a_thread_talks_with_a_link():
    async def check(link, mailbox):
        def engine():
            got = []
            while len(got) < 300:
                for message in mailbox.receive(5):
                    got.append(message.id)
                    mailbox.send([Abortless(message.id)])
            seen.append(got)

        def Abortless(name):  # noqa: N802
            return Ended(id=name, attempt=0, reason=FinishReason(kind="abort"), num_outputs=0)

        seen = []
        thread = threading.Thread(target=engine)
        thread.start()
        names = [str(index) for index in range(300)]
        back = []
        for index, name in enumerate(names):
            link.send(Abort(id=name))
            if index % 7 == 0:
                await asyncio.sleep(0)
        while len(back) < 300:
            back += [message.id for message in await asyncio.wait_for(link.receive(), 5)]
        thread.join(5)
        assert seen == [names]
        assert back == names

    both_kinds(check)


def test_receive_waits_no_longer_than_told():
    async def check(link, mailbox):
        begun = time.monotonic()
        assert mailbox.receive(0) == []
        assert mailbox.receive(0.05) == []
        assert time.monotonic() - begun < 1

    both_kinds(check)


def test_closing_a_link_wakes_who_waits():
    async def check(link, mailbox):
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0.01)
        link.close()
        assert await asyncio.wait_for(waiting, 2) == []

    both_kinds(check)


def test_the_socket_lies_in_a_private_directory():
    endpoint = Endpoint()
    assert stat.S_IMODE(endpoint.directory.stat().st_mode) == 0o700
    endpoint.remove()


def test_a_link_to_a_dead_engine_does_not_block():
    async def check():
        endpoint = Endpoint()
        link = ZmqLink(endpoint)
        for _ in range(5000):
            link.send(SUBMIT)
        await asyncio.sleep(0.01)
        link.close()

    asyncio.run(asyncio.wait_for(check(), 5))


@pytest.mark.parametrize(
    "spoilt",
    [
        msgspec.structs.replace(SUBMIT, priority=2**64),
        msgspec.structs.replace(SUBMIT, priority=-(2**63) - 1),
        msgspec.structs.replace(SUBMIT, namespace="\ud800"),
    ],
)
def test_a_message_that_cannot_be_encoded_fails_alone(spoilt):
    async def check():
        endpoint = Endpoint()
        link = ZmqLink(endpoint)
        mailbox = ZmqMailbox(endpoint.address)
        link.send(SUBMIT)
        with pytest.raises(RequestError, match="cannot be sent"):
            link.send(spoilt)
        link.send(Abort(id="b"))
        await asyncio.sleep(0.05)
        assert mailbox.receive(5) == [SUBMIT, Abort(id="b")]
        mailbox.close()
        link.close()

    asyncio.run(check())


def test_a_message_that_cannot_be_read_ends_its_own_request_only():
    async def check():
        endpoint = Endpoint()
        link = ZmqLink(endpoint)
        mailbox = ZmqMailbox(endpoint.address)
        spoilt = msgspec.structs.replace(
            SUBMIT, id="x", attempt=2, params=msgspec.structs.replace(SUBMIT.params, top_p=7.0)
        )
        for message in (SUBMIT, spoilt, Abort(id="b")):
            link.send(message)
        await asyncio.sleep(0.05)
        assert mailbox.receive(5) == [SUBMIT, Abort(id="b")]
        assert mailbox.num_received == 3
        (ended,) = await asyncio.wait_for(link.receive(), 5)
        assert (ended.id, ended.attempt, ended.reason.kind) == ("x", 2, "error")
        mailbox.close()
        link.close()

    asyncio.run(check())


def test_an_engine_that_speaks_nonsense_counts_as_crashed():
    async def check():
        endpoint = Endpoint()
        link = ZmqLink(endpoint)
        mailbox = ZmqMailbox(endpoint.address)
        mailbox._socket.send(b"\x91\x81\xa4type\xa4Bomb")
        (crashed,) = await asyncio.wait_for(link.receive(), 5)
        assert isinstance(crashed, Crashed)
        assert not crashed.is_config
        mailbox.close()
        link.close()

    asyncio.run(check())


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_messages_encoded_apart_make_one_frame(count):
    part = codec.encode_one(Abort(id="b"))
    assert codec.decode_to_engine(codec.join([part] * count)) == [Abort(id="b")] * count


def test_receipts_know_how_long_something_is_on_its_way():
    now = 0.0
    receipts = Receipts(lambda: now)
    receipts.sent()
    now = 1.0
    receipts.sent()
    now = 3.0
    assert receipts.unheard_s == 3.0
    receipts.heard(1)  # the second is on its way
    now = 4.0
    assert receipts.unheard_s == 1.0
    receipts.heard(2)
    now = 9.0
    assert receipts.unheard_s == 0.0
    receipts.sent()
    receipts.heard(2)
    now = 11.0
    assert receipts.unheard_s == 2.0
