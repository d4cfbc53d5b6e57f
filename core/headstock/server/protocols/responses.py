"""OpenAI's responses: their bodies as chats, and answers in parts as output items."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, cast

import msgspec

from headstock.errors import RequestError
from headstock.requests.sampling import Int64
from headstock.server.completion import Completion, Delta
from headstock.server.model_card import ModelCard
from headstock.server.protocols.messages import (
    ChatMessage,
    ContentPart,
    Function,
    FunctionCall,
    Tool,
    ToolCall,
    flat_messages,
    read_tools,
    speech_of,
)
from headstock.server.protocols.named_events import named_event
from headstock.server.protocols.openai_bodies import check_model, spoken
from headstock.server.protocols.parameters import (
    CHANGE_ANSWERS,
    join_namespace,
    not_yet,
    to_params,
)
from headstock.server.request import ChatPrompt, GenerateRequest
from headstock.server.speech import Answer, Dialect, NamedCall, Speech, count
from headstock.text import Tokenizer
from headstock.text.parsers import Part

MAX_STORED = 1024
"""Responses that are kept; the oldest are forgotten first."""
_NAMES = {"max_new_tokens": "max_output_tokens", "input_ids": "input"}


class Item(msgspec.Struct):
    """One item of the input: a message, a call, its result, or earlier thoughts."""

    type: str = "message"
    role: str | None = None
    content: str | list[ContentPart] | None = None
    name: str | None = None
    arguments: str | None = None
    call_id: str | None = None
    output: str | list[ContentPart] | None = None


class ResponseTool(msgspec.Struct):
    """A function that the model may call; built-in tools are refused."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(msgspec.Struct):
    """How much the model thinks; for its chat template."""

    effort: str | None = None
    summary: str | None = None


class TextFormat(msgspec.Struct):
    """The form of the answer; only ``text`` is supported."""

    type: str


class TextOptions(msgspec.Struct):
    """What the answer looks like."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/responses``."""

    REFUSES: ClassVar[frozenset[str]] = CHANGE_ANSWERS | {
        "conversation",
        "prompt",
        "max_tool_calls",
    }

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    top_logprobs: Int64 | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None


class ResponsesCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body.

    Attributes:
        messages: The whole conversation, instructions aside, for a response that follows it.
    """

    id: str
    created: int
    body: ResponsesBody
    model: str
    request: GenerateRequest
    speech: Speech | None
    messages: list[ChatMessage]


class Stored(msgspec.Struct, frozen=True):
    """A response that was asked to be kept."""

    response: dict[str, Any]
    messages: list[ChatMessage]


class ResponseStore:
    """The last responses that were asked to be kept, each for the caller whose key asked."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Stored] = OrderedDict()

    def keep(self, tenant: str, stored: Stored) -> None:
        """Keep a response, forgetting the oldest if there are too many."""
        self._kept[tenant, stored.response["id"]] = stored
        if len(self._kept) > MAX_STORED:
            self._kept.popitem(last=False)

    def find(self, tenant: str, response_id: str, field: str | None = None) -> Stored:
        """Return a kept response.

        Raises:
            RequestError: There is none of this name.
        """
        found = self._kept.get((tenant, response_id))
        if found is None:
            raise RequestError(
                f"There is no response {response_id[:128]!r}.",
                remedy=f"Ask with store: true; the last {MAX_STORED} are kept until a restart.",
                field=field,
                code="not_found",
            )
        return found

    def forget(self, tenant: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            RequestError: There is none of this name.
        """
        self.find(tenant, response_id)
        del self._kept[tenant, response_id]


def read_response(
    body: ResponsesBody, card: ModelCard, dialect: Dialect, store: ResponseStore, tenant: str = ""
) -> ResponsesCall:
    """Turn a body of ``/v1/responses`` into a request.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    _check(body)
    tools = [] if body.tool_choice == "none" else read_tools(_tools(body.tools or []))
    speech = speech_of(dialect, tools, has_parallel_calls=body.parallel_tool_calls is not False)
    earlier: list[ChatMessage] = []
    if body.previous_response_id is not None:
        found = store.find(tenant, body.previous_response_id, "previous_response_id")
        earlier = found.messages
    items = [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    messages = [*earlier, *_messages(items)]
    lead = [ChatMessage("system", body.instructions)] if body.instructions else []
    extra = dict(body.chat_template_kwargs or {})
    if body.reasoning is not None and body.reasoning.effort is not None:
        extra["reasoning_effort"] = body.reasoning.effort
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    given["max_new_tokens"] = body.max_output_tokens
    params = to_params(given, defaults=card.sampling_defaults, names=_NAMES)
    params = msgspec.structs.replace(params, max_new_tokens=body.max_output_tokens)
    call_id = f"resp_{uuid.uuid4().hex}"
    request = GenerateRequest(
        prompt=ChatPrompt(flat_messages([*lead, *messages], dialect), tools=tools, extra=extra),
        params=spoken(params, speech, dialect),
        rid=call_id,
        namespace=join_namespace(tenant, None, body.cache_salt),
        names=_NAMES,
    )
    return ResponsesCall(
        id=call_id,
        created=int(time.time()),
        body=body,
        model=card.name,
        request=request,
        speech=speech,
        messages=messages,
    )


def _check(body: ResponsesBody) -> None:
    if body.tool_choice not in (None, "none", "auto"):
        raise not_yet("tool_choice", "A tool_choice other than none and auto")
    kind = body.text.format.type if body.text is not None and body.text.format else "text"
    if kind != "text":
        raise not_yet("text", f"text.format of type {kind[:64]!r}")
    if body.top_logprobs:
        raise not_yet("top_logprobs")
    if body.truncation not in (None, "disabled"):
        raise not_yet("truncation", f"truncation {body.truncation[:64]!r}")


def _tools(tools: Sequence[ResponseTool]) -> list[Tool]:
    for index, tool in enumerate(tools):
        if tool.type != "function" or tool.name is None:
            raise not_yet("tools", f"tools[{index}] of type {tool.type[:64]!r}")
    return [
        Tool(
            function=Function(
                tool.name or "", tool.description, tool.parameters, strict=tool.strict or None
            )
        )
        for tool in tools
    ]


def _messages(items: Sequence[Item]) -> list[ChatMessage]:
    """Return items as messages of a chat: calls join the turn of the assistant that made them."""
    messages: list[ChatMessage] = []
    for index, item in enumerate(items):
        match item.type:
            case "message":
                messages.append(ChatMessage(item.role or "user", item.content))
            case "function_call":
                call = ToolCall(FunctionCall(item.name or "", item.arguments or "{}"), item.call_id)
                last = messages[-1] if messages else None
                if last is None or last.role != "assistant":
                    last = ChatMessage("assistant")
                    messages.append(last)
                last.tool_calls = [*(last.tool_calls or []), call]
            case "function_call_output":
                content = item.output or ""
                messages.append(ChatMessage("tool", content, tool_call_id=item.call_id))
            case "reasoning":
                pass  # templates show earlier thoughts of calls only, and these come without words
            case _:
                raise not_yet("input", f"input[{index}] of type {item.type[:64]!r}")
    return messages


def response_of(
    call: ResponsesCall, completion: Completion, output: list[dict[str, Any]], answer: Answer
) -> dict[str, Any]:
    """Return the response as it is now.

    Args:
        call: What was asked.
        completion: Of it.
        output: Items so far.
        answer: For how it ended.
    """
    body, finish = call.body, answer.finish
    status = {None: "in_progress", "length": "incomplete", "abort": "cancelled"}
    tokens = count([completion])
    usage = {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": tokens.prompt + tokens.output,
    }
    return {
        "id": call.id,
        "object": "response",
        "created_at": call.created,
        "status": status.get(finish, "completed"),
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if finish == "length" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None}
        if body.reasoning is None
        else msgspec.to_builtins(body.reasoning),
        "store": bool(body.store),
        "temperature": call.request.params.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": msgspec.to_builtins(body.tools or []),
        "top_p": call.request.params.top_p,
        "truncation": "disabled",
        "usage": usage if finish is not None else None,
    }


def items_of(call: ResponsesCall, answer: Answer) -> list[dict[str, Any]]:
    """Return the output items of an answer that is complete."""
    output: list[dict[str, Any]] = []
    if answer.reasoning:
        output.append(_reasoning_item(call, "".join(answer.reasoning)))
    text = "".join(answer.text)
    if text or not answer.calls:
        output.append(_message_item(call, text))
    return output + [_call_item(named) for named in answer.calls]


def _reasoning_item(call: ResponsesCall, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    name = call.id.replace("resp_", "rs_")
    return {"id": name, "type": "reasoning", "summary": [], "content": content}


def _message_item(call: ResponsesCall, text: str, status: str = "completed") -> dict[str, Any]:
    return {
        "id": call.id.replace("resp_", "msg_"),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_text_part(text)],
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(named: NamedCall, *, is_done: bool = True) -> dict[str, Any]:
    return {
        "id": named.id.replace("call_", "fc_"),
        "type": "function_call",
        "call_id": named.id,
        "name": named.call.name,
        "arguments": named.call.arguments if is_done else "",
        "status": "completed" if is_done else "in_progress",
    }


def stored_of(call: ResponsesCall, response: dict[str, Any], answer: Answer) -> Stored:
    """Return what is kept of a response: itself, and the conversation that a next one follows."""
    calls = [
        ToolCall(FunctionCall(named.call.name, named.call.arguments), named.id)
        for named in answer.calls
    ]
    said = ChatMessage("assistant", "".join(answer.text), tool_calls=calls or None)
    return Stored(response, [*call.messages, said])


class ResponseStream:
    """Events of one streamed response: items of one kind after another."""

    def __init__(self, call: ResponsesCall, completion: Completion, tokenizer: Tokenizer) -> None:
        self._call = call
        self._completion = completion
        self.answer = Answer(completion, call.speech, tokenizer)
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None
        self._text: list[str] = []
        self._num_calls = 0

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """Return the events that ``deltas`` make."""
        made: list[bytes] = []
        for delta in deltas:
            if self._number == 0:
                made += [
                    self._event("response.created", response=self._response()),
                    self._event("response.in_progress", response=self._response()),
                ]
            for part in self.answer.read(delta):
                made += self._part(part)
            if delta.end is not None:
                made += self._end()
        return b"".join(made)

    def _event(self, kind: str, **fields: Any) -> bytes:
        value = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(value)

    def _response(self) -> dict[str, Any]:
        return response_of(self._call, self._completion, self._output, self.answer)

    def _part(self, part: Part) -> list[bytes]:
        if part.call is not None:
            return self._whole_call()
        made: list[bytes] = []
        if self._open != part.kind:
            made += self._close()
            made += self._begin(part.kind)
        self._text.append(part.text)
        kind = "response.output_text" if part.kind == "text" else "response.reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if part.kind == "text" else {}
        return [*made, self._event(f"{kind}.delta", **self._place(), delta=part.text, **more)]

    def _place(self) -> dict[str, Any]:
        item = self._output[-1]
        return {"item_id": item["id"], "output_index": len(self._output) - 1, "content_index": 0}

    def _begin(self, kind: str) -> list[bytes]:
        self._open = kind
        if kind == "text":
            item = _message_item(self._call, "", "in_progress")
        else:
            item = _reasoning_item(self._call, "")
        part = item["content"][0]
        self._output.append(item)
        added: dict[str, Any] = {**item, "content": []}
        index = len(self._output) - 1
        return [
            self._event("response.output_item.added", output_index=index, item=added),
            self._event("response.content_part.added", **self._place(), part=part),
        ]

    def _close(self) -> list[bytes]:
        """Return the events that end the open item."""
        kind, self._open = self._open, None
        if kind is None:
            return []
        text = "".join(self._text)
        self._text = []
        if kind == "text":
            item = _message_item(self._call, text)
            told = self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
        else:
            item = _reasoning_item(self._call, text)
            told = self._event("response.reasoning_text.done", **self._place(), text=text)
        part = cast("list[dict[str, Any]]", item["content"])[0]
        place = self._place()
        self._output[-1] = item
        index = len(self._output) - 1
        return [
            told,
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _whole_call(self) -> list[bytes]:
        made = self._close()
        named = self.answer.calls[self._num_calls]
        self._num_calls += 1
        self._output.append(_call_item(named, is_done=False))
        index = len(self._output) - 1
        place = {"item_id": self._output[-1]["id"], "output_index": index}
        arguments = named.call.arguments
        made += [
            self._event("response.output_item.added", output_index=index, item=self._output[-1]),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event(
                "response.function_call_arguments.done",
                **place,
                name=named.call.name,
                arguments=arguments,
            ),
        ]
        self._output[-1] = _call_item(named)
        done = self._event("response.output_item.done", output_index=index, item=self._output[-1])
        return [*made, done]

    def _end(self) -> list[bytes]:
        made = self._begin("text") if not self._output else []
        made += self._close()
        is_cut = self.answer.finish == "length"
        kind = "response.incomplete" if is_cut else "response.completed"
        return [*made, self._event(kind, response=self._response())]

    @property
    def response(self) -> dict[str, Any]:
        """The response as it ended."""
        return self._response()
