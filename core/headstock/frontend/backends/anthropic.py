"""Anthropic's messages API."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from headstock.config.environment import variable
from headstock.errors import RequestError
from headstock.frontend.backends import constraints
from headstock.frontend.backends.endpoint import Endpoint
from headstock.frontend.backends.steps import StepBackend, refuse_logprobs, refuse_method
from headstock.programs import Branch, Chosen, Gen, Generated, Message, Select
from headstock.programs.check import DEFAULT_TOKENS
from headstock.programs.graph import MediaPart
from headstock.programs.model import OnText, Usage

HOME = "https://api.anthropic.com"
VERSION = "2023-06-01"
_NAMES = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p",
          "top_k": "top_k", "stop": "stop_sequences"}  # fmt: skip
_TOOL = "answer"
_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "stop"}


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    input: Any = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = None


class _Answer(msgspec.Struct):
    content: list[_Block] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Delta(msgspec.Struct):
    text: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Event(msgspec.Struct):
    type: str
    delta: _Delta = msgspec.field(default_factory=_Delta)
    message: _Answer | None = None
    usage: _Usage | None = None


class Anthropic(StepBackend):
    """Runs programs of turns on an endpoint of Anthropic's API.

    Args:
        model: Its name there.
        api_key: None: ``ANTHROPIC_API_KEY``.
        base_url: Without ``/v1``.
        timeout_s: For an answer, or the next event of one; None: as long as it takes.
        client: Sends the requests; None: one of its own.
    """

    def __init__(
        self,
        model: str,
        api_key: str | None = None,
        *,
        base_url: str = HOME,
        timeout_s: float | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        key = api_key or variable("ANTHROPIC_API_KEY")
        headers = {"anthropic-version": VERSION}
        if key is not None:
            headers["x-api-key"] = key
        super().__init__(
            f"{model} at {base_url}",
            Endpoint(base_url, headers, timeout_s=timeout_s, client=client),
        )
        self._model = model

    async def generate(self, state: Branch, step: Gen, on_text: OnText | None) -> Generated:
        """Go on from ``state``; see :class:`headstock.programs.Model`."""
        refuse_logprobs(step, self.name)
        params = dict(step.sampling_params)
        schema, is_wrapped = constraints.of_params(params)
        count = params.pop("n", 1) or 1
        body = self._body(state) | self._params(params)
        if schema is not None:
            body |= _forced(schema)
        elif on_text is not None and count == 1:
            return await self._stream(body, on_text)
        answers = await asyncio.gather(*[self._ask(body) for _ in range(count)])
        texts = [_text(answer, is_json=schema is not None) for answer in answers]
        if is_wrapped:
            texts = [constraints.unwrap(text) for text in texts]
        return Generated(texts, _usage(list(answers)))

    async def select(self, state: Branch, step: Select) -> Chosen:
        """Return which choice the model names; see :class:`headstock.programs.Model`."""
        refuse_method(step, self.name)
        body = self._body(state) | self._params({"temperature": 0})
        answer = await self._ask(body | _forced(constraints.of_choices(step.choices)))
        index = constraints.chosen(_text(answer, is_json=True), step.choices)
        return Chosen(index, _usage([answer]))

    def _body(self, state: Branch) -> dict[str, Any]:
        if not state.messages:
            raise RequestError(
                f"{self.name} knows turns only, and this is plain text.",
                remedy="Put it into user(…) and assistant(…).",
                field="role",
                code="not_supported",
            )
        system = [m.text for m in state.messages if m.role == "system"]
        turns = [m for m in state.messages if m.role != "system" and m.content]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": _content(m)} for m in turns],
        }
        return body | ({"system": "\n\n".join(system)} if system else {})

    def _params(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"max_tokens": DEFAULT_TOKENS}
        for name, value in given.items():
            if value is None:
                continue
            if name not in _NAMES:
                raise RequestError(
                    f"{self.name} has no parameter {name!r}.",
                    remedy=f"It has {', '.join(_NAMES)}.",
                    field=name,
                    code="not_supported",
                )
            found[_NAMES[name]] = [value] if name == "stop" and isinstance(value, str) else value
        return found

    async def _ask(self, body: Mapping[str, Any]) -> _Answer:
        return _convert(await self._endpoint.post("/v1/messages", body), _Answer)

    async def _stream(self, body: dict[str, Any], on_text: OnText) -> Generated:
        pieces: list[str] = []
        answer = _Answer()
        usage = _Usage()
        async for data in self._endpoint.events("/v1/messages", body | {"stream": True}):
            event = _convert(msgspec.json.decode(data), _Event)
            match event.type:
                case "message_start" if event.message is not None:
                    usage = event.message.usage
                case "content_block_delta" if event.delta.text:
                    pieces.append(event.delta.text)
                    on_text(0, event.delta.text)
                case "message_delta":
                    answer.stop_reason = event.delta.stop_reason
                    answer.stop_sequence = event.delta.stop_sequence
                    if event.usage is not None:
                        usage.output_tokens = event.usage.output_tokens
                case "error":
                    raise RequestError(
                        f"The stream ended in an error: {data[:200]}.", remedy="Try again."
                    )
                case _:
                    pass
        answer.usage = usage
        return Generated(["".join(pieces)], _usage([answer]))


def _forced(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes the model answer by a schema: a tool that it has to call."""
    tool = {"name": _TOOL, "description": "Gives the answer.", "input_schema": schema}
    return {"tools": [tool], "tool_choice": {"type": "tool", "name": _TOOL}}


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.has_media:
        return message.text
    return [_part(part) for part in message.content]


def _part(part: str | MediaPart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.kind != "image":
        raise RequestError(
            "This API takes no videos.", remedy="Give images.", field="kind", code="not_supported"
        )
    if not part.url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    head, _, data = part.url.partition(",")
    kind, _, coding = head.removeprefix("data:").partition(";")
    if coding != "base64":
        data = base64.b64encode(data.encode()).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _text(answer: _Answer, *, is_json: bool) -> str:
    if not is_json:
        return "".join(block.text for block in answer.content if block.type == "text")
    for block in answer.content:
        if block.type == "tool_use":
            return msgspec.json.encode(block.input).decode()
    raise RequestError(
        "The model did not give its answer in the form that it was asked for.",
        remedy="Try again, with more tokens.",
        code="invalid_result",
    )


def _convert(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RequestError(
            f"The endpoint's answer is none of this API: {error}.",
            remedy="Check base_url.",
            code="bad_answer",
        ) from error


def _usage(answers: list[_Answer]) -> Usage:
    cached = sum(answer.usage.cache_read_input_tokens or 0 for answer in answers)
    return Usage(
        prompt_tokens=sum(answer.usage.input_tokens for answer in answers) + cached,
        cached_tokens=cached,
        completion_tokens=sum(answer.usage.output_tokens for answer in answers),
        finish_reason=_REASONS.get(answers[0].stop_reason or "", answers[0].stop_reason),
        matched=answers[0].stop_sequence,
    )
