"""A real server on loopback over an engine that echoes ids; no model."""

import asyncio
import contextlib
import threading

import httpx
import msgspec
import pytest

from headstock.config.schema import ModelSettings, ServerSettings, ServeSettings
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app
from headstock.server.http.event_loop import run
from headstock.server.http.listen import listen_all
from headstock.server.http.serve import serve
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.text import ChatTemplate, Tokenizer
from tests.server.fakes import EchoEngine
from tests.server.toy_tokenizer import EOS, TEMPLATE, toy_backend


class Served:
    """A running server: its URL, its front door and engine, and a way into its event loop."""

    def __init__(self, *, engine=None, settings=None, max_live=2048, template=TEMPLATE):
        self.template = template
        self.engine_options = engine or {}
        self.settings = ServeSettings(
            model=ModelSettings(served_model_name="echo"),
            server=msgspec.structs.replace(  # "x" is what tests that write HTTP themselves say
                settings or ServerSettings(port=0, drain_timeout_s=2.0), allowed_host=["x"]
            ),
        )
        self.max_live = max_live
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: run(self.main()), daemon=True)

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(20)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(20)
        assert not self.thread.is_alive()

    async def main(self):
        self.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        tokenizer = Tokenizer(toy_backend(), special={"eos_token": "<|end|>"})
        self.tokenizer = tokenizer
        self.metrics = Metrics("echo", lambda: self.frontdoor.status.state, alias="sglang")
        link = self.make_link()
        card = ModelCard(
            name="echo",
            model_path="/nowhere",
            max_length=512,
            vocab_size=tokenizer.vocab_size,
            eos_ids=[EOS],
        )
        self.frontdoor = Frontdoor(
            link,
            card,
            Prompter(tokenizer, ChatTemplate(self.template, tokenizer.special)),
            max_live=self.max_live,
            observer=self.metrics,
        )
        pump = asyncio.create_task(self.frontdoor.run())
        await self.frontdoor.wait_ready()
        listeners = listen_all(self.settings.server)
        self.admin_port = listeners[1].getsockname()[1] if len(listeners) > 1 else None
        app = create_app(self.frontdoor, self.settings, self.metrics, admin_port=self.admin_port)
        self.app = app

        def tell(url):
            self.url = url
            self.ready.set()
            self.on_url(url)

        await serve(
            app,
            listeners,
            self.frontdoor,
            self.settings.server,
            on_listening=tell,
            stop=self.stop,
        )
        await self.end_link()
        await pump
        self.left_over = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        self.frontdoor.close()

    def on_url(self, url):
        """Hear of the address."""

    def make_link(self):
        self.engine = EchoEngine(**self.engine_options)
        return self.engine

    async def end_link(self):
        self.engine.close()
        await asyncio.wait([self.engine.task])

    def call(self, function):
        """Run ``function`` in the server's event loop and return what it returns."""

        async def run():
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def post(self, path, json=None, **more):
        return httpx.post(self.url + path, json=json, timeout=20, **more)

    def get(self, path, **more):
        return httpx.get(self.url + path, timeout=20, **more)


@pytest.fixture(scope="session")
def served():
    with Served() as server:
        yield server
