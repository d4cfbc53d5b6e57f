"""``headstock.Engine``: the engine without a server, on the same scheduler and the same front door.

The engine loop runs in a thread of this process and so does the front door's event loop; calls
come from any thread or event loop.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from headstock.assemble.api_plugins import load_api_plugins
from headstock.assemble.engine_loop import build_engine_loop
from headstock.assemble.memory_hygiene import look_at_everything, spare_what_lasts
from headstock.assemble.model_files import find_model
from headstock.assemble.progress import Report, meter, silent
from headstock.assemble.served_model import load_prompter, model_card
from headstock.assemble.vetting import leave_out_unfit
from headstock.config import EngineSettings, settings_from_call
from headstock.config.adapters import given_adapters
from headstock.errors import HeadstockError, RequestError
from headstock.programs import UNLIMITED, Emit, Outcome, Program, check, run_program
from headstock.server.completion import Completion
from headstock.server.frontdoor import Frontdoor
from headstock.server.model_card import ModelCard
from headstock.server.program_model import DoorModel
from headstock.server.protocols import native_answers, native_bodies
from headstock.server.protocols.embeddings import EncodeBody, encode_answer, read_encode
from headstock.server.protocols.ranking import ScoreBody, read_score
from headstock.server.request import ChatPrompt, GenerateRequest
from headstock.wire.messages import Loading, Started
from headstock.wire.transport import MemoryMailbox, memory_pair

if TYPE_CHECKING:
    from headstock.assemble.local_routes import LocalRoutes

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)
Result = dict[str, Any]
UNBOUNDED = 2**31 - 1
"""No other caller waits behind an offline one: its queue needs no bound."""


class Engine:
    """Generates text or token ids from prompts, in this process.

    Args:
        model: As for `headstock serve`: a folder, a GGUF file, a known name or a hub id.
        report: Called with the progress of loading.
        loras: Name to folder of the LoRA adapters that prompts may name; see docs/lora.md.
        settings: As the flags of `headstock serve`, such as ``dtype="float32"``,
            ``skip_tokenizer_init=True`` or ``max_model_len=4096``.

    Raises:
        HeadstockError: A setting is not allowed, or the model cannot be served here.

    Example:
        >>> with headstock.Engine(model="smollm2") as engine:  # doctest: +SKIP
        ...     engine.generate(prompt="Hello", sampling_params={"max_new_tokens": 4})["text"]
    """

    def __init__(
        self,
        model: str = "smollm2",
        *,
        report: Report = silent,
        loras: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        bounds = {"max_queued_requests": UNBOUNDED, "max_queued_tokens": UNBOUNDED}
        if loras:
            settings["lora"] = [f"{name}={path}" for name, path in loras.items()]
        loaded = settings_from_call(EngineSettings, bounds | {"model": model} | settings)
        loaded = leave_out_unfit(loaded)
        wanted = loaded.settings.model
        report(Loading(phase="model files"))
        files = find_model(loaded.settings, progress=meter(report, "pull", "bytes"))
        plugins = load_api_plugins(loaded.settings.device.disable_plugin)
        prompter = load_prompter(files, wanted, loaded.settings.media, plugins.formats)
        card = model_card(files, wanted, prompter, registry=plugins.models)
        self._door_loop = asyncio.new_event_loop()
        self._door_thread = threading.Thread(
            target=self._door_loop.run_forever, name="headstock-frontdoor", daemon=True
        )
        self._door_thread.start()
        try:
            mailbox, self._link = self._on_door(_pair())
            self._loop = build_engine_loop(loaded, files, mailbox, report)
        except BaseException:
            self._stop_door()
            raise
        adapters = given_adapters(loaded.settings.lora)
        self._door = self._on_door(_open_door(self._link, card, prompter, adapters))
        self._settings = loaded.settings
        self._routes: LocalRoutes | None = None
        self._running = self._on_door(_start(self._door))
        mailbox.send([self._loop.started])
        self._engine_thread = threading.Thread(
            target=self._loop.run, name="headstock-engine", daemon=True
        )
        self._engine_thread.start()
        self._is_open = True
        self._on_door(self._door.wait_ready())
        # A collection that walks a loaded model holds all requests up for a tenth of a second.
        spare_what_lasts()
        try:
            self._on_door(self._door.adapters.load_given())
        except HeadstockError:
            self.shutdown()
            raise

    @property
    def started(self) -> Started:
        """Its limits and facts, such as device and memory plan."""
        return self._loop.started

    @property
    def card(self) -> ModelCard:
        """What is known of the model: name, vocabulary, longest request, sampling defaults."""
        return self._door.card

    def generate(
        self,
        prompt: str | list[str] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        sampling_params: Mapping[str, Any] | list[dict[str, Any]] | None = None,
        *,
        stream: bool = False,
        **more: Any,
    ) -> Any:
        """Generate from one prompt or a list.

        Args:
            prompt: Text; or give ``input_ids``.
            input_ids: Token ids.
            sampling_params: Fields of ``SamplingParams``; one for all prompts, or one each.
            stream: Return an iterator of growing results instead.
            more: Further fields of ``/generate``, such as ``return_logprob`` or ``lora_name``, the
                LoRA adapter: one for all prompts, or one each, None where it is the model alone.

        Returns:
            ``{"text", "output_ids", "meta_info"}`` as ``/generate`` answers; a list of them for a
            list of prompts; with ``stream`` an iterator of them, with ``index`` for a list.

        Raises:
            RequestError: Naming the field at fault.
        """
        call = self._call(prompt, input_ids, sampling_params, stream, more)
        if stream:
            return self._stream(call)
        return self._on_door(_whole(self._door, call))

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        sampling_params: Mapping[str, Any] | list[dict[str, Any]] | None = None,
        *,
        stream: bool = False,
        **more: Any,
    ) -> Any:
        """As :meth:`generate`, from a coroutine; with ``stream`` returns an async iterator."""
        call = self._call(prompt, input_ids, sampling_params, stream, more)
        if stream:
            return self._async_stream(call)
        return await asyncio.wrap_future(self._submit(_whole(self._door, call)))

    def embed(
        self,
        prompt: str | list[str] | list[list[str]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        dimensions: int | None = None,
        **more: Any,
    ) -> Any:
        """Return the vector of a text, or what a reward model or classifier gives it.

        Args:
            prompt: A text, or a list of texts or of pairs; or give ``input_ids``.
            input_ids: Token ids.
            dimensions: Elements to keep of vectors; None: all.
            more: Further fields of ``/encode``, such as ``priority`` or ``image_data``: of a list
                one entry a text, which has the model's placeholder once for each image.

        Returns:
            ``{"embedding", "meta_info"}`` as ``/encode`` answers; a list of them for a list.

        Raises:
            RequestError: Naming the field at fault.
        """
        fields = {**more, "text": prompt, "input_ids": input_ids, "dimensions": dimensions}
        return self._on_door(_embed(self._door, self._body(fields, EncodeBody, "embed")))

    def score(
        self,
        query: str | list[int] | None = None,
        items: str | list[str] | list[list[int]] | None = None,
        **more: Any,
    ) -> list[list[float]]:
        """Return the scores of items for a query: similarities, a classifier's, or of labels.

        Args:
            query: A text, or token ids.
            items: One or several.
            more: Further fields of ``/v1/score``, such as ``label_token_ids`` of a model that
                generates, ``apply_softmax``, or ``text_1`` and ``text_2`` instead of both.

        Returns:
            Of each item one score, or one a label.

        Raises:
            RequestError: Naming the field at fault.
        """
        fields = {**more, "query": query, "items": items}
        return self._on_door(_score(self._door, self._body(fields, ScoreBody, "score")))

    async def async_program(self, program: Program, emit: Emit | None = None) -> Outcome:
        """Run a program of the language, as ``/v1/programs`` does; see docs/language.md.

        Args:
            program: Its steps.
            emit: Called with each event, in a thread of the engine's.

        Raises:
            RequestError: Naming the step at fault.
        """
        check(program, UNLIMITED)
        work = run_program(program, DoorModel(self._door), emit)
        return await asyncio.wrap_future(self._submit(work))

    async def async_request(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON that a server of this engine answers ``body`` with.

        Args:
            path: Of a route that is posted to, such as ``/v1/chat/completions``.
            body: What is posted.
        """
        if self._routes is None:
            # The application's libraries take long to import, and most engines never need them.
            from headstock.assemble.local_routes import LocalRoutes

            self._routes = LocalRoutes(self._door, self._settings)
        return await asyncio.wrap_future(self._submit(self._routes.post(path, body)))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``.

        Raises:
            RequestError: The engine has no tokenizer.
        """
        tokenizer = self._door.prompter.tokenizer
        if tokenizer is None:
            raise RequestError(
                "This engine was started without a tokenizer.",
                remedy="Drop skip_tokenizer_init.",
                field="text",
                code="no_tokenizer",
            )
        return tokenizer.encode(text)

    def encode_chat(self, messages: list[dict[str, Any]], **variables: Any) -> list[int]:
        """Return the token ids of a chat, up to where the model is to answer.

        Args:
            messages: ``role`` and ``content`` of each.
            variables: More of them for the chat template.

        Raises:
            RequestError: The model has no chat template, or it refuses the messages.
        """
        prompt = ChatPrompt(messages, extra=variables)
        return self._door.prompter.encode(prompt, self._door.max_length)

    def flush_cache(self) -> int:
        """Forget every cached prefix that no live request uses; return the pages that are free."""
        return self._on_door(self._door.flush_cache(30.0)).freed_pages

    def load_lora_adapter(self, lora_name: str, lora_path: str) -> None:
        """Make room for prompts to name the LoRA adapter in the folder ``lora_path``.

        Raises:
            RequestError: It cannot be served, or the name is taken.
        """
        self._on_door(self._door.adapters.load(lora_name, lora_path))

    def unload_lora_adapter(self, lora_name: str, timeout_s: float = 60.0) -> None:
        """Forget a LoRA adapter; prompts with it that run longer end with an error.

        Raises:
            RequestError: There is none of that name.
        """
        self._on_door(self._door.unload_adapter(lora_name, timeout_s))

    def shutdown(self) -> None:
        """End all requests and free the device. May be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.stop()
        self._door_loop.call_soon_threadsafe(self._door.abort_all)
        self._engine_thread.join()
        self._loop.close()
        self._door_loop.call_soon_threadsafe(self._link.close)
        self._running.result()
        self._door.close()
        self._stop_door()
        look_at_everything()

    def __enter__(self) -> Engine:
        """Return the engine itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down."""
        self.shutdown()

    def _call(
        self,
        prompt: str | list[str] | None,
        input_ids: list[int] | list[list[int]] | None,
        sampling_params: Mapping[str, Any] | list[dict[str, Any]] | None,
        stream: bool,
        more: Mapping[str, Any],
    ) -> native_bodies.NativeCall:
        fields = {
            **more,
            "text": prompt,
            "input_ids": input_ids,
            "sampling_params": sampling_params,
            "stream": stream,
        }
        body = self._body(fields, native_bodies.GenerateBody, "generate")
        return native_bodies.read(body, dialect=self._door.prompter.dialect)

    def _body(self, fields: dict[str, Any], kind: type[B], method: str) -> B:
        """Return the fields of a call of ``method`` as the body that its route takes."""
        if not self._is_open:
            raise HeadstockError("The engine was shut down.", remedy="Make another one.")
        try:
            return msgspec.convert(fields, kind)
        except msgspec.ValidationError as error:
            raise RequestError(str(error), remedy=f"See the docstring of {method}.") from error

    def _stream(self, call: native_bodies.NativeCall) -> Iterator[Result]:
        events: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
        pump = self._submit(_pump(self._door, call, events.put))
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            pump.cancel()

    async def _async_stream(self, call: native_bodies.NativeCall) -> AsyncIterator[Result]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Result | BaseException | None] = asyncio.Queue()

        def put(event: Result | BaseException | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        pump = self._submit(_pump(self._door, call, put))
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            pump.cancel()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._door_loop)

    def _on_door(self, work: Coroutine[Any, Any, T]) -> T:
        return self._submit(work).result()

    def _stop_door(self) -> None:
        self._door_loop.call_soon_threadsafe(self._door_loop.stop)
        self._door_thread.join()
        self._door_loop.close()


async def _pair() -> tuple[MemoryMailbox, Any]:
    return memory_pair()


async def _open_door(link: Any, card: Any, prompter: Any, adapters: Mapping[str, str]) -> Frontdoor:
    # An engine in this process cannot be lost; a first step that compiles takes what it takes.
    return Frontdoor(
        link,
        card,
        prompter,
        max_live=UNBOUNDED,
        adapters=adapters,
        silence_limit_s=math.inf,
    )


async def _start(door: Frontdoor) -> Future[None]:
    return asyncio.run_coroutine_threadsafe(door.run(), asyncio.get_running_loop())


async def _whole(door: Frontdoor, call: native_bodies.NativeCall) -> Result | list[Result]:
    """Return the answers of a call once all have ended."""
    completions = await _ended(door, call.requests)
    tokenizer = door.prompter.tokenizer
    answers = [
        native_answers.answer(
            completion,
            completion.submit.id,
            tokenizer,
            wants_text=call.wants_text,
            wants_prompt_ids=call.wants_prompt_ids,
        )
        for completion in completions
    ]
    return answers if call.is_batch else answers[0]


async def _embed(door: Frontdoor, body: EncodeBody) -> Result | list[Result]:
    """Return what a call's texts yield once all have ended."""
    card = door.served_card
    call = read_encode(body, card, type_stride=door.type_stride)
    answers: list[Result] = [{} for _ in call.requests]
    generation = await door.generate(call.requests, is_streamed=True)
    try:
        async for index, one in generation.ended():
            rid = call.requests[index].rid or ""
            answers[index] = encode_answer(one, rid, card, call.dimensions)
    finally:
        generation.abort()
    return answers if call.is_list else answers[0]


async def _score(door: Frontdoor, body: ScoreBody) -> list[list[float]]:
    """Return the scores of a call's items once all have ended."""
    card = door.served_card
    call = read_score(body, card, type_stride=door.type_stride)
    return call.scores(await _ended(door, call.requests), card)


async def _ended(door: Frontdoor, requests: Sequence[GenerateRequest]) -> Sequence[Completion]:
    generation = await door.generate(requests, is_streamed=False)
    try:
        await generation.finished()
    finally:
        generation.abort()
    return generation.completions


async def _pump(
    door: Frontdoor,
    call: native_bodies.NativeCall,
    put: Callable[[Result | BaseException | None], None],
) -> None:
    """Hand every event of a streamed call to ``put``, an error as itself, and None at the end."""
    try:
        generation = await door.generate(call.requests, is_streamed=True)
        rids = [completion.submit.id for completion in generation.completions]
        stream = native_answers.NativeStream(
            call, generation.completions, rids, door.prompter.tokenizer
        )
        try:
            while deltas := await generation.deltas():
                for delta in deltas:
                    put(stream.event(delta, 0.0))
            if generation.error is not None:
                raise generation.error
        finally:
            generation.abort()
        put(None)
    except HeadstockError as error:
        put(error)


class Runtime(Engine):
    """An engine under SGLang's name for it, so that its programs port by changing the import.

    Args:
        model_path: As ``model`` of :class:`Engine`.
        settings: As of :class:`Engine`.
    """

    def __init__(self, model_path: str, **settings: Any) -> None:
        super().__init__(model=model_path, **settings)
