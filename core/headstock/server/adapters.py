"""The LoRA adapters that clients may name, and their generations.

An adapter that is loaded gets an id of its own, even under a name that another had before: nothing
that was computed with that one is taken for it. When the engine is started again the adapters are
loaded first, then its requests go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from headstock.config.adapters import NAME, check_name
from headstock.errors import RequestError, did_you_mean
from headstock.server.errors import BusyError
from headstock.server.model_card import ModelCard
from headstock.wire.messages import AdapterReply, LoadAdapter, ToEngine, UnloadAdapter

log = logging.getLogger(__name__)

ENGINE_LIMIT_S = 300.0
"""How long the engine may take to read or forget an adapter. Seconds."""
PATH = "lora_path"


@dataclass(slots=True, eq=False)
class Adapter:
    """An adapter that was loaded, or is.

    Attributes:
        name: What clients call it.
        path: Its folder.
        id: Of this generation of it.
        created: When it was loaded. Seconds since 1970.
        num_live: Requests that wait or run with it.
        reply: What the engine said of it last; None: it has not answered.
        is_leaving: Whether it is being unloaded.
    """

    name: str
    path: str
    id: str
    created: int
    num_live: int = 0
    reply: AdapterReply | None = None
    is_leaving: bool = False


class AdapterBook:
    """Knows the adapters by name, and has the engine read and forget them.

    Args:
        card: The served model.
        given: Name to folder of those that are there from the start.
        send: Sends to the engine.
    """

    def __init__(
        self, card: ModelCard, given: Mapping[str, str], send: Callable[[ToEngine], None]
    ) -> None:
        self._card, self._send = card, send
        self._numbers = itertools.count(1)
        self._calls = itertools.count(1)
        self._asked: dict[int, Adapter] = {}
        """By call that the engine has not answered."""
        self._changed = asyncio.Event()
        self._leaving: list[Adapter] = []
        self._by_name = {name: self._make(name, path) for name, path in given.items()}
        self._given = list(self._by_name.values())

    @property
    def all(self) -> list[Adapter]:
        """Those that requests may name, in the order in which they were loaded."""
        return list(self._by_name.values())

    def card_of(self, model: str | None, lora_path: str | None = None) -> ModelCard:
        """Return the card of what a request names: the model, or it with an adapter.

        Args:
            model: The model's name, an adapter's, or both with a colon between; None: the model.
            lora_path: An adapter's name, as some clients send it beside the model.

        Raises:
            RequestError: There is no such adapter, or two are named. Whether there is such a
                model is the caller's to say.
        """
        found = self._of_model(model or "")
        if lora_path:
            named = self.named(lora_path, PATH)
            if found is not None and found is not named:
                raise RequestError(
                    f"model names the adapter {found.name!r} and lora_path {named.name!r}.",
                    remedy="Name one.",
                    field=PATH,
                )
            if found is None and model not in (None, "", "default", self._card.name):
                return self._card
            found = named
        if found is None:
            return self._card
        return msgspec.structs.replace(
            self._card, name=model or self._card.name, adapter=found.name, created=found.created
        )

    def _of_model(self, model: str) -> Adapter | None:
        """Return the adapter that ``model`` names, alone or after the model and a colon.

        Raises:
            RequestError: What stands after the colon is none.
        """
        base, _, name = model.rpartition(":")
        if base and base in ("default", self._card.name):
            return self.named(name, "model")
        return self._by_name.get(model)

    def named(self, name: str, field: str) -> Adapter:
        """Return the adapter of that name.

        Raises:
            RequestError: There is none.
        """
        found = self._by_name.get(name)
        if found is None:
            raise self.unknown(name, field)
        return found

    def unknown(self, name: str, field: str) -> RequestError:
        """Return the error for an adapter that there is not."""
        names = ", ".join(map(repr, self._by_name)) or "none"
        return RequestError(
            f"The adapter {name[:128]!r} does not exist; this server has {names}."
            f"{did_you_mean(name[:128], self._by_name)}",
            remedy="Use one of these, or load it with POST /load_lora_adapter.",
            field=field,
            code="model_not_found",
        )

    def gone(self, adapter: Adapter) -> RequestError:
        """Return the error for a request whose adapter was unloaded."""
        return RequestError(
            f"The adapter {adapter.name!r} was unloaded while the request ran.",
            remedy="Send it again with another one.",
            field="model",
            code="adapter_not_found",
        )

    # What requests do

    def find(self, name: str) -> Adapter | None:
        """Return the adapter that a request names; None: it names none.

        Raises:
            RequestError: There is none of that name.
        """
        return self.named(name, PATH) if name else None

    def enter(self, adapter: Adapter | None) -> None:
        """Take note that a request begins with ``adapter``.

        Raises:
            RequestError: It was unloaded meanwhile.
        """
        if adapter is None:
            return
        if self._by_name.get(adapter.name) is not adapter:
            raise self.unknown(adapter.name, PATH)
        adapter.num_live += 1

    def leave(self, adapter: Adapter | None) -> None:
        """Take note that a request of it has ended."""
        if adapter is not None:
            adapter.num_live -= 1
            self._changed.set()

    # What operators do

    async def load(self, name: str, path: str) -> Adapter:
        """Have the engine read the adapter in the folder ``path``; requests may name it then.

        Raises:
            RequestError: The name is taken or no name, or the adapter cannot be served.
            BusyError: The engine did not answer.
        """
        check_name(name)
        if name in self._by_name:
            raise RequestError(
                f"An adapter {name!r} is loaded already.",
                remedy="Unload it first, or use another name.",
                field=NAME,
                code="already_loaded",
            )
        if name == self._card.name:
            raise RequestError(
                f"{name!r} is the model's own name.", remedy="Use another name.", field=NAME
            )
        adapter = self._make(name, path)
        self._by_name[name] = adapter  # requests that come meanwhile wait in the engine
        self._send_load(adapter)
        try:
            await self._loaded(adapter)
        except BaseException:
            self._remove(adapter)
            raise
        return adapter

    async def load_given(self) -> None:
        """Wait until the adapters are read that are there from the start.

        Raises:
            RequestError: One cannot be served.
            BusyError: The engine did not answer.
        """
        for adapter in self._given:
            await self._loaded(adapter)

    async def unload(self, name: str, timeout_s: float, end: Callable[[Adapter], None]) -> Adapter:
        """Refuse new requests for an adapter, and make the engine forget it.

        Args:
            name: Of the adapter.
            timeout_s: How long requests that run with it may go on. Seconds.
            end: Ends those that still run then.

        Raises:
            RequestError: There is none of that name.
            BusyError: The engine did not answer.
        """
        adapter = self.named(name, NAME)
        self._remove(adapter)
        self._leaving.append(adapter)
        try:
            await self._wait(lambda: adapter.num_live == 0, timeout_s)
            end(adapter)
            adapter.is_leaving, adapter.reply = True, None
            call = next(self._calls)
            self._asked[call] = adapter
            self._send(UnloadAdapter(call=call, adapter=adapter.id))
            await self._answered(adapter)
        finally:
            self._leaving.remove(adapter)
        return adapter

    # What the engine does

    def answer(self, reply: AdapterReply) -> None:
        """Take an answer of the engine's."""
        adapter = self._asked.pop(reply.call, None)
        if adapter is None:
            return
        adapter.reply = reply
        if reply.problem:
            log.error("The adapter %r cannot be loaded: %s", adapter.name, reply.problem)
            self._remove(adapter)
        self._changed.set()

    def started(self) -> None:
        """Have a new engine read all adapters; before its requests go on."""
        self._asked.clear()
        for adapter in (*self._by_name.values(), *self._leaving):
            if adapter.is_leaving:
                adapter.reply = AdapterReply(call=0)  # the new one does not know of it
                self._changed.set()
            else:
                self._send_load(adapter)

    def _send_load(self, adapter: Adapter) -> None:
        call = next(self._calls)
        self._asked[call] = adapter
        self._send(LoadAdapter(call=call, adapter=adapter.id, path=adapter.path))

    async def _loaded(self, adapter: Adapter) -> None:
        reply = await self._answered(adapter)
        if reply.problem:
            raise RequestError(
                reply.problem, remedy=reply.remedy, field=PATH, code="adapter_refused"
            )

    async def _answered(self, adapter: Adapter) -> AdapterReply:
        """Return what the engine says of ``adapter``."""
        await self._wait(lambda: adapter.reply is not None, ENGINE_LIMIT_S)
        if adapter.reply is None:
            raise BusyError(
                f"The engine did not answer in {ENGINE_LIMIT_S:g} s.",
                code="engine_unavailable",
                retry_after_s=2.0,
            )
        return adapter.reply

    async def _wait(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something is so, or for so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not is_so() and (left := deadline - loop.time()) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _remove(self, adapter: Adapter) -> None:
        if self._by_name.get(adapter.name) is adapter:
            del self._by_name[adapter.name]

    def _make(self, name: str, path: str) -> Adapter:
        return Adapter(name, path, f"{name}#{next(self._numbers)}", int(time.time()))
