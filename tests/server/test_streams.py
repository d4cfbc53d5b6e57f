"""How a step's tokens reach many streams: at once, in one write each, and joined for the slow."""

import asyncio
import json
import socket

from headstock.config.schema import ServerSettings
from headstock.requests import SamplingParams
from headstock.server.frontdoor import Frontdoor
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.server.request import GenerateRequest, TokensPrompt
from headstock.wire.messages import Started, Tokens
from tests.server.conftest import Served
from tests.server.fakes import EchoCore
from tests.server.test_disconnect import request_bytes, wait_until

SETTINGS = ServerSettings(port=0, drain_timeout_s=1.0)


class Wire:
    """A link whose messages a test sends itself."""

    unheard_s = 0.0

    def __init__(self):
        self.sent = []
        self.inbox = asyncio.Queue()

    def send(self, message):
        self.sent.append(message)

    async def receive(self):
        return await self.inbox.get()


def tokens(request_id, offset):
    return Tokens(ids=[request_id], attempts=[0], offsets=[offset], counts=[1], token_ids=[7])


async def one_stream():
    """Return a wire, a front door on it that runs, and a stream of it."""
    wire = Wire()
    card = ModelCard(name="m", model_path="", max_length=99, vocab_size=99, eos_ids=[])
    door = Frontdoor(wire, card, Prompter(None, None))
    running = asyncio.create_task(door.run())
    wire.inbox.put_nowait([Started(limits=EchoCore().limits)])
    await door.wait_ready()
    request = GenerateRequest(prompt=TokensPrompt([5]), params=SamplingParams(max_new_tokens=9))
    return wire, running, await door.generate([request], is_streamed=True)


def test_steps_that_come_together_are_heard_of_once():
    async def heard():
        wire, running, generation = await one_stream()
        name, sizes = wire.sent[0].id, []
        generation.listen(lambda: sizes.append(len(generation.take())))
        wire.inbox.put_nowait([tokens(name, 0), tokens(name, 1)])
        wire.inbox.put_nowait([tokens(name, 2)])
        while sum(sizes) < 3:
            await asyncio.sleep(0)
        running.cancel()
        return sizes

    assert asyncio.run(heard()) == [2, 1]


def test_a_stream_that_cannot_be_written_ends_alone(monkeypatch):
    def fail(*_):
        raise ValueError("a defect")

    with Served(settings=SETTINGS) as server:
        body = {"text": "ab", "stream": True, "sampling_params": {"max_new_tokens": 400}}
        with monkeypatch.context() as patched, socket.create_connection(address(server)) as caller:
            patched.setattr("headstock.server.protocols.events.GrowingEvent.write", fail)
            caller.sendall(request_bytes(body))
            while caller.recv(65536):
                pass
        wait_until(server, lambda: server.frontdoor.num_live == 0)
        assert server.post("/generate", {"text": "ab"}).status_code == 200


def test_a_client_that_pauses_gets_everything_in_fewer_events(monkeypatch):
    monkeypatch.setattr("headstock.server.generation.MAX_BACKLOG", 10**9)
    sampling = {"max_new_tokens": 400, "n": 64}
    with Served(settings=SETTINGS) as server, socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.settimeout(20)
        caller.connect(address(server))
        caller.sendall(request_bytes({"text": "xy", "stream": True, "sampling_params": sampling}))
        wait_until(server, lambda: len(server.engine.running) == 64)
        wait_until(server, lambda: not server.frontdoor.num_live, seconds=20)
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += caller.recv(1 << 20)
    events = [json.loads(line[6:]) for line in answer.split(b"\n") if line.startswith(b"data: {")]
    last = {each["index"]: each["text"] for each in events}
    assert last == dict.fromkeys(range(64), "xy" * 200)
    assert len(events) < 64 * 400


def address(server):
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)
