"""Ollama's chats and completions: their bodies as chats, and answers in parts as lines of JSON."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.requests import Grammar
from headstock.requests.sampling import Int64
from headstock.server.completion import Completion, Delta
from headstock.server.model_card import ModelCard
from headstock.server.protocols.events import encode
from headstock.server.protocols.messages import (
    BareImage,
    ChatMessage,
    ContentPart,
    FunctionCall,
    Tool,
    ToolCall,
    flat_messages,
    read_tools,
    speech_of,
    spoken,
    strict_names,
    thinking_variables,
)
from headstock.server.protocols.parameters import check_model, not_yet, to_params
from headstock.server.request import ChatPrompt, GenerateRequest, Prompt, TextPrompt
from headstock.server.speech import Answer, Dialect, Speech, whole_calls
from headstock.text import Tokenizer
from headstock.text.parsers import Part

_NAMES = {
    "max_new_tokens": "num_predict",
    "repetition_penalty": "repeat_penalty",
    "sampling_seed": "seed",
    "input_ids": "prompt",
}
_OURS = {name: ours for ours, name in _NAMES.items() if ours != "input_ids"}
_SAME = frozenset(
    {"temperature", "top_k", "top_p", "min_p", "stop", "frequency_penalty", "presence_penalty"}
)
_REFUSED = frozenset({"mirostat", "typical_p", "tfs_z"})
_NS = 1e9


class Turn(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: str = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None


class OllamaBody(msgspec.Struct, kw_only=True):
    """What chats and completions have in common."""

    REFUSES: ClassVar[frozenset[str]] = frozenset({"logprobs", "top_logprobs"})

    model: str
    options: dict[str, Any] | None = None
    stream: bool | None = None
    think: bool | str | None = None
    keep_alive: Int64 | float | str | None = None
    format: str | dict[str, Any] | None = None


class OllamaChatBody(OllamaBody, kw_only=True):
    """Body of ``/api/chat``."""

    messages: list[Turn] = []
    tools: list[Tool] | None = None


class OllamaGenerateBody(OllamaBody, kw_only=True):
    """Body of ``/api/generate``."""

    REFUSES: ClassVar[frozenset[str]] = OllamaBody.REFUSES | {
        "suffix", "template", "context", "images", "width", "height",
    }  # fmt: skip

    prompt: str = ""
    system: str | None = None
    raw: bool | None = None


class OllamaCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body.

    Attributes:
        model: As the caller named it.
        request: None: nothing was asked but that the model be loaded, which it always is.
        is_chat: Whether answers are messages.
    """

    model: str
    request: GenerateRequest | None
    speech: Speech | None
    is_chat: bool
    is_streamed: bool


def check_name(name: str, card: ModelCard) -> None:
    """Refuse a model that is not the served one; Ollama's clients add ``:latest``.

    Raises:
        RequestError: It is another's.
    """
    check_model(name.removesuffix(":latest"), card)


def read_chat(
    body: OllamaChatBody, card: ModelCard, dialect: Dialect, tenant: str = ""
) -> OllamaCall:
    """Turn a body of ``/api/chat`` into a request.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_name(body.model, card)
    tools = read_tools(body.tools)
    how: dict[str, Any] = {"strict": strict_names(body.tools)}
    how["separates"] = body.think is not False
    speech = speech_of(dialect, tools, **how)
    if not body.messages:
        return _call(body, None, speech, is_chat=True)
    images: list[Source] = []
    messages = [_message(index, turn) for index, turn in enumerate(body.messages)]
    is_continued = messages[-1].role == "assistant" and not messages[-1].tool_calls
    prompt = ChatPrompt(
        flat_messages(messages, dialect, images),
        images=images,
        tools=tools,
        extra=_thinking(body.think, dialect),
        continue_final=is_continued,
    )
    if speech is not None and is_continued:
        speech = speech_of(dialect, tools, **how, is_continued=True)
    request = _request(body, prompt, card, speech, dialect, tenant)
    return _call(body, request, speech, is_chat=True)


def read_generate(
    body: OllamaGenerateBody, card: ModelCard, dialect: Dialect, tenant: str = ""
) -> OllamaCall:
    """Turn a body of ``/api/generate`` into a request: a chat of one turn, unless it is raw.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_name(body.model, card)
    if not body.prompt:
        return _call(body, None, None, is_chat=False)
    speech = None
    prompt: Prompt = TextPrompt(body.prompt)
    if not body.raw:
        speech = speech_of(dialect, [], separates=body.think is not False)
        lead = [ChatMessage("system", body.system)] if body.system else []
        messages = flat_messages([*lead, ChatMessage("user", body.prompt)], dialect)
        prompt = ChatPrompt(messages, extra=_thinking(body.think, dialect))
    request = _request(body, prompt, card, speech, dialect, tenant)
    return _call(body, request, speech, is_chat=False)


def _call(
    body: OllamaBody, request: GenerateRequest | None, speech: Speech | None, *, is_chat: bool
) -> OllamaCall:
    return OllamaCall(
        model=body.model,
        request=request,
        speech=speech,
        is_chat=is_chat,
        is_streamed=body.stream is not False,
    )


def _request(
    body: OllamaBody,
    prompt: Prompt,
    card: ModelCard,
    speech: Speech | None,
    dialect: Dialect,
    tenant: str,
) -> GenerateRequest:
    options = {name: value for name, value in (body.options or {}).items() if value is not None}
    for name in sorted(options.keys() & _REFUSED):
        if options[name] not in (0, 1, 1.0):
            raise not_yet(f"options.{name}")
    given = {
        _OURS.get(name, name): v for name, v in options.items() if name in _OURS or name in _SAME
    }
    limit: object = given.get("max_new_tokens")
    if isinstance(limit, int) and limit < 0:  # -1 and -2: as many as the context holds
        given.pop("max_new_tokens")
        limit = None
    params = to_params(given, defaults=card.sampling_defaults, names=_NAMES)
    if limit is None:
        params = msgspec.structs.replace(params, max_new_tokens=None)
    return GenerateRequest(
        prompt=prompt,
        params=spoken(params, speech, dialect),
        rid=f"ollama-{uuid.uuid4().hex}",
        is_clipped=True,
        namespace=tenant,
        names=_NAMES,
        adapter=card.adapter,
        speech=speech,
        grammar=_grammar(body.format),
    )


def _grammar(wanted: str | dict[str, Any] | None) -> Grammar | None:
    """Return what the output must look like: any JSON object, or JSON of a schema."""
    if not wanted:
        return None
    if wanted == "json":
        return Grammar("json_object", "", "format")
    if isinstance(wanted, str):
        raise RequestError(
            f"format is {wanted[:64]!r}.", remedy="Use json, or a JSON schema.", field="format"
        )
    return Grammar("json_schema", encode(wanted).decode(), "format")


def _message(index: int, turn: Turn) -> ChatMessage:
    content: str | list[ContentPart] = turn.content
    if turn.images:
        content = [
            BareImage("image_url", image_url=image, where=f"messages[{index}].images[{place}]")
            for place, image in enumerate(turn.images)
        ]
        content.append(ContentPart("text", turn.content))
    return ChatMessage(
        turn.role,
        content,
        name=turn.tool_name,
        tool_calls=[
            ToolCall(FunctionCall(call.function.name, call.function.arguments), call.id)
            for call in turn.tool_calls or ()
        ]
        or None,
        reasoning_content=turn.thinking,
    )


def _thinking(think: bool | str | None, dialect: Dialect) -> dict[str, Any]:
    if think and dialect.reasoning is None:
        raise not_yet("think", "think, with a model whose chat template has none,")
    if isinstance(think, str):
        return thinking_variables(True) | {"reasoning_effort": think}
    return thinking_variables(think)


class OllamaStream:
    """Lines of one answer; a whole one is the same, all in one line."""

    def __init__(
        self, call: OllamaCall, completion: Completion, tokenizer: Tokenizer, begun_s: float
    ) -> None:
        self._call = call
        self._completion = completion
        self._answer = Answer(completion, call.speech, tokenizer)
        self._begun_s = begun_s
        self._is_silent = True

    def write(self, deltas: Sequence[Delta], now_s: float) -> bytes:
        """Return the lines that ``deltas`` make."""
        lines: list[bytes] = []
        for delta in deltas:
            parts = whole_calls(self._answer, self._answer.read(delta))
            lines += [self._line(self._told(part)) for part in parts]
            if delta.end is not None:
                lines.append(self._line(self._told(), self._end(now_s)))
        return b"".join(lines)

    def whole(self, now_s: float) -> bytes:
        """Return the answer of a completion that has ended, as one line."""
        answer = self._answer
        answer.read_all()
        line = self._words("".join(answer.text), "".join(answer.reasoning))
        if answer.calls:
            line["message"]["tool_calls"] = [
                _function(named.name, named.call.arguments)
                for named in answer.calls
                if named.is_whole
            ]
        return self._line(line, self._end(now_s))

    def _told(self, part: Part | None = None) -> dict[str, Any]:
        if part is None:
            return self._words("")
        if part.call is not None:
            line = self._words("")
            line["message"]["tool_calls"] = [_function(part.call.name, part.call.arguments)]
            return line
        return self._words("", part.text) if part.kind == "reasoning" else self._words(part.text)

    def _words(self, text: str, thinking: str = "") -> dict[str, Any]:
        thought = {"thinking": thinking} if thinking else {}
        if self._call.is_chat:
            return {"message": {"role": "assistant", "content": text, **thought}}
        return {"response": text, **thought}

    def _line(self, line: dict[str, Any], end: dict[str, Any] | None = None) -> bytes:
        head = {"model": self._call.model, "created_at": datetime.now(UTC).isoformat()}
        return encode({**head, **line, **(end or {"done": False})}) + b"\n"

    def _end(self, now_s: float) -> dict[str, Any]:
        completion = self._completion
        started_s = now_s if completion.started_s is None else completion.started_s
        reason = self._answer.finish
        return {
            "done": True,
            "done_reason": "stop" if reason == "tool_calls" else reason,
            "total_duration": int((now_s - self._begun_s) * _NS),
            "load_duration": 0,
            "prompt_eval_count": len(completion.submit.prompt_ids),
            "prompt_eval_duration": int((started_s - self._begun_s) * _NS),
            "eval_count": len(completion.output_ids),
            "eval_duration": int((now_s - started_s) * _NS),
        }


def _function(name: str, arguments: str) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": json.loads(arguments)}}


def loaded(call: OllamaCall) -> dict[str, Any]:
    """Return the answer to a call without a prompt: the model is loaded."""
    line = {"message": {"role": "assistant", "content": ""}} if call.is_chat else {"response": ""}
    head = {"model": call.model, "created_at": datetime.now(UTC).isoformat()}
    return {**head, **line, "done": True, "done_reason": "load"}


def fail(error: RequestError, message: str) -> bytes:
    """Return the line that ends a stream with ``error``."""
    return encode({"error": message, "code": error.code}) + b"\n"


def describe(card: ModelCard) -> dict[str, Any]:
    """Return the served model as lists of models have it."""
    name = f"{card.name}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(card.created, UTC).isoformat(),
        "size": 0,
        "digest": "",
        "details": {
            "parent_model": "",
            "format": "gguf" if card.model_path.endswith(".gguf") else "safetensors",
            "family": card.model_type,
            "families": [card.model_type],
            "parameter_size": "",
            "quantization_level": card.quantization or card.dtype,
        },
    }
