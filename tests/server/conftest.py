"""A real server on loopback over an engine that echoes ids; no model."""

import asyncio
import contextlib
import threading

import httpx
import msgspec
import pytest

from headstock.assemble.api_process import state_folder, store_options
from headstock.config.schema import ModelSettings, ServerSettings, ServeSettings
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http import routes_page
from headstock.server.http.app import create_app, servable
from headstock.server.http.event_loop import run
from headstock.server.http.listen import listen_all
from headstock.server.http.serve import serve
from headstock.server.keys import read_keys
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.server.records import RecordBook
from headstock.server.speech import find_dialect
from headstock.text import ChatTemplate, Tokenizer
from tests.server.fakes import EchoEngine
from tests.server.toy_tokenizer import EOS, SPEAKING_TEMPLATE, TEMPLATE, toy_backend


class Served:
    """A running server: its URL, its front door and engine, and a way into its event loop."""

    has_process = True

    def __init__(self, *, engine=None, settings=None, max_live=2048, template=TEMPLATE, card=None):
        self.template = template
        self.engine_options = engine or {}
        self.settings = ServeSettings(
            model=ModelSettings(served_model_name="echo"),
            server=msgspec.structs.replace(  # "x" is what tests that write HTTP themselves say
                settings or ServerSettings(port=0, drain_timeout_s=2.0), allowed_host=["x"]
            ),
        )
        self.max_live = max_live
        self.card_options = card or {}
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
        state = state_folder(self.settings.server)
        link = self.make_link()
        card = ModelCard(
            name="echo",
            max_length=512,
            vocab_size=tokenizer.vocab_size,
            eos_ids=[EOS],
            **{"model_path": "/nowhere", **self.card_options},
        )
        self.frontdoor = Frontdoor(
            link,
            card,
            Prompter(
                tokenizer,
                ChatTemplate(self.template, tokenizer.special),
                find_dialect(self.template, tokenizer),
            ),
            max_live=self.max_live,
            process=link if self.has_process else None,
            observer=self.metrics,
            **store_options(self.settings.server, state),
            records=RecordBook(self.settings.server.request_records),
        )
        pump = asyncio.create_task(self.frontdoor.run())
        await self.frontdoor.wait_ready()
        listeners = listen_all(self.settings.server)
        self.admin_port = listeners[1].getsockname()[1] if len(listeners) > 1 else None
        await self.frontdoor.resumption.revive()
        app = create_app(
            self.frontdoor,
            self.settings,
            self.metrics,
            keys=read_keys(self.settings.server, None if state is None else state.secret),
            admin_port=self.admin_port,
            state=state,
            routers={"page": routes_page.make_router},
        )
        self.app = app

        def tell(url):
            self.url = url
            self.ready.set()
            self.on_url(url)

        await serve(
            servable(app),
            listeners,
            self.frontdoor,
            self.settings.server,
            on_listening=tell,
            stop=self.stop,
        )
        await self.end_link()
        await pump
        if state is not None:
            state.close()
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


class Speaking(Served):
    """A server whose model thinks and calls functions, and answers what a test says."""

    def says(self, text):
        """Answer ``text`` to every request from now on."""
        script = [*self.tokenizer.encode(text), EOS]
        self.call(lambda: setattr(self.engine, "script", script))

    @property
    def last_submit(self):
        """What the engine was asked last."""
        return [m for m in self.engine.seen if type(m).__name__ == "Submit"][-1]

    @property
    def last_prompt(self):
        """The text of the last request's prompt."""
        return self.tokenizer.decode(self.last_submit.prompt_ids, skip_special_tokens=False)


@pytest.fixture(scope="session")
def speaking():
    with Speaking(template=SPEAKING_TEMPLATE) as server:
        yield server
