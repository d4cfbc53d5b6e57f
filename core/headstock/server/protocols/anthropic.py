"""Anthropic's messages: their bodies as chats, and answers in parts as content blocks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.requests import Grammar
from headstock.requests.sampling import Int64
from headstock.server.completion import Completion, Delta
from headstock.server.model_card import ModelCard
from headstock.server.protocols.choices import ANY, AUTO, OFF, Choice
from headstock.server.protocols.events import named_event
from headstock.server.protocols.messages import (
    BareImage,
    ChatMessage,
    ContentPart,
    Function,
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
from headstock.server.protocols.parameters import CHANGE_ANSWERS, check_model, not_yet, to_params
from headstock.server.request import ChatPrompt, GenerateRequest
from headstock.server.speech import Answer, Dialect, Speech, count
from headstock.server.thought_budget import ThoughtBudget
from headstock.text import Tokenizer
from headstock.text.parsers import Part

_NAMES = {"max_new_tokens": "max_tokens", "input_ids": "messages", "stop": "stop_sequences"}


class ResultBlock(msgspec.Struct):
    """A piece of a function's result; only text is supported."""

    type: str
    text: str | None = None


class ImageSource(msgspec.Struct):
    """Where an image is: ``base64`` with data, or ``url``."""

    type: str
    data: str | None = None
    url: str | None = None


class Block(msgspec.Struct):
    """A piece of content; ``cache_control`` changes nothing: equal prefixes are always cached."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ResultBlock] | None = None
    source: ImageSource | None = None


class Message(msgspec.Struct):
    """One turn."""

    role: str
    content: str | list[Block]


class ClientTool(msgspec.Struct):
    """A function that the model may call; tools of a ``type`` of their own are refused."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """Whether the model calls functions."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBlock(msgspec.Struct):
    """Whether the model thinks before it answers, and for how many tokens."""

    type: str
    budget_tokens: Int64 | None = None


class OutputFormat(msgspec.Struct):
    """What the answer's words must look like: ``json_schema``."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    """How the model answers.

    Attributes:
        effort: How much it thinks; for its chat template.
        format: What its words must look like; None: anything.
    """

    effort: str | None = None
    format: OutputFormat | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/messages/count_tokens``."""

    REFUSES: ClassVar[frozenset[str]] = CHANGE_ANSWERS | {"mcp_servers", "container"}

    messages: list[Message]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingBlock | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountBody, kw_only=True):
    """Body of ``/v1/messages``."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: Int64 | None = None


class MessagesCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body."""

    id: str
    model: str
    request: GenerateRequest
    speech: Speech | None
    max_tokens: int
    is_streamed: bool


def read_messages(
    body: MessagesBody, card: ModelCard, dialect: Dialect, tenant: str = ""
) -> MessagesCall:
    """Turn a body of ``/v1/messages`` into a request.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    prompt, speech = read_prompt(body, dialect)
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences,
        "max_new_tokens": body.max_tokens,
    }
    params = to_params(given, defaults=card.sampling_defaults, names=_NAMES)
    call_id = f"msg_{uuid.uuid4().hex[:24]}"
    request = GenerateRequest(
        prompt=prompt,
        params=spoken(params, speech, dialect),
        rid=call_id,
        is_clipped=True,  # the context's end has a stop reason of its own
        namespace=tenant,
        names=_NAMES,
        adapter=card.adapter,
        speech=speech,
        grammar=_grammar(body.output_config),
        thoughts=_budget(body, dialect),
    )
    return MessagesCall(
        id=call_id,
        model=card.name,
        request=request,
        speech=speech,
        max_tokens=body.max_tokens,
        is_streamed=bool(body.stream),
    )


def read_prompt(body: CountBody, dialect: Dialect) -> tuple[ChatPrompt, Speech | None]:
    """Return a body's chat, and which parts of its answer are separated.

    Raises:
        RequestError: Naming the field at fault.
    """
    given = body.tool_choice or ToolChoice("auto")
    choice, shown = _choice(given), _tools(body.tools or [])
    tools = [] if choice.is_off else read_tools(shown)
    is_continued = body.messages[-1].role == "assistant" if body.messages else False
    speech = speech_of(
        dialect,
        tools,
        choice=choice,
        strict=strict_names(shown),
        has_parallel_calls=not given.disable_parallel_tool_use,
        is_continued=is_continued,
    )
    messages = [m for index, turn in enumerate(body.messages) for m in _messages(index, turn)]
    images: list[Source] = []
    if body.system:
        messages.insert(0, ChatMessage("system", _text("system", body.system)))
    prompt = ChatPrompt(
        flat_messages(messages, dialect, images),
        images=images,
        tools=tools,
        extra=_thinking(body.thinking, dialect) | _effort(body.output_config),
        continue_final=is_continued,
    )
    return prompt, speech


def _budget(body: MessagesBody, dialect: Dialect) -> ThoughtBudget | None:
    """Return for how many tokens the model may think: a target, enforced where it can be."""
    thinking = body.thinking
    if thinking is None or thinking.type != "enabled" or thinking.budget_tokens is None:
        return None
    if thinking.budget_tokens < 0 or dialect.reasoning is None:
        raise RequestError(
            f"thinking.budget_tokens is {thinking.budget_tokens}.",
            remedy="Give the number of tokens, 0 or more.",
            field="thinking",
        )
    return ThoughtBudget(
        tokens=thinking.budget_tokens,
        reasoning=dialect.reasoning,
        field="thinking",
        is_target=True,
        is_continued=body.messages[-1].role == "assistant",
    )


def _choice(given: ToolChoice) -> Choice:
    match given.type:
        case "auto":
            return AUTO
        case "none":
            return OFF
        case "any":
            return ANY
        case "tool" if given.name:
            return Choice(must_call=True, only=frozenset([given.name]))
        case _:
            raise RequestError(
                f"tool_choice is of type {given.type[:64]!r}, or names no tool.",
                remedy="Use auto, none, any, or tool with a name.",
                field="tool_choice",
            )


def _thinking(thinking: ThinkingBlock | None, dialect: Dialect) -> dict[str, Any]:
    kind = "disabled" if thinking is None else thinking.type
    if kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError(
            f"thinking.type is {kind[:64]!r}.",
            remedy="Use enabled, disabled or adaptive.",
            field="thinking",
        )
    if kind == "enabled" and dialect.reasoning is None:
        raise not_yet("thinking", "thinking, with a model whose chat template has none,")
    return thinking_variables({"enabled": True, "disabled": False}.get(kind))


def _effort(config: OutputConfig | None) -> dict[str, Any]:
    effort = None if config is None else config.effort
    return {} if effort is None else {"reasoning_effort": effort}


def _grammar(config: OutputConfig | None) -> Grammar | None:
    """Return what the answer's words must look like; None: anything."""
    wanted = None if config is None else config.format
    if wanted is None:
        return None
    field = "output_config.format"
    if wanted.type != "json_schema":
        raise RequestError(
            f"{field}.type is {wanted.type[:64]!r}.", remedy="Use json_schema.", field=field
        )
    if wanted.schema is None:
        raise RequestError(f"{field}.schema is missing.", remedy="Give it.", field=field)
    return Grammar("json_schema", msgspec.json.encode(wanted.schema).decode(), field)


def _tools(tools: Sequence[ClientTool]) -> list[Tool]:
    for index, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            raise not_yet("tools", f"tools[{index}] of type {tool.type[:64]!r}")
    return [
        Tool(
            function=Function(
                tool.name, tool.description, tool.input_schema, strict=tool.strict or None
            )
        )
        for tool in tools
    ]


def _messages(index: int, turn: Message) -> list[ChatMessage]:
    """Return a turn as messages of a chat: results of calls come as messages of their own."""
    if turn.role not in ("user", "assistant"):
        raise RequestError(
            f"messages has the role {turn.role[:64]!r}.",
            remedy="Use user or assistant, and system at the top.",
            field="messages",
        )
    if isinstance(turn.content, str):
        return [ChatMessage(turn.role, turn.content)]
    results = [
        ChatMessage("tool", _text("messages", block.content or ""), tool_call_id=block.tool_use_id)
        for block in turn.content
        if block.type == "tool_result"
    ]
    calls = [
        ToolCall(FunctionCall(block.name or "", block.input or {}), id=block.id)
        for block in turn.content
        if block.type == "tool_use"
    ]
    thoughts = [block.thinking or "" for block in turn.content if block.type == "thinking"]
    words = [block for block in turn.content if block.type not in HANDLED]
    said = ChatMessage(
        turn.role,
        _said(index, turn.content) if words else None,
        tool_calls=calls or None,
        reasoning_content="\n".join(thoughts) if thoughts else None,
    )
    is_needed = bool(words or calls) or turn.role == "assistant" or not results
    if is_needed and said.content is None and turn.role == "user":
        said.content = ""
    return [*results, said] if is_needed else results


HANDLED = ("tool_result", "tool_use", "thinking", "redacted_thinking")


def _said(index: int, blocks: Sequence[Block]) -> str | list[ContentPart]:
    """Return what a turn says: text, or parts where there are images among it."""
    words = [block for block in blocks if block.type not in HANDLED]
    if all(block.type != "image" for block in words):
        return _text("messages", words)
    parts: list[ContentPart] = []
    for place, block in enumerate(blocks):
        source = block.source
        if block.type in HANDLED:
            continue
        if block.type == "image" and source is not None:
            url = source.data if source.type == "base64" else source.url
            where = f"messages[{index}].content[{place}].source"
            parts.append(BareImage("image_url", image_url=url or "", where=where))
        else:
            parts.append(ContentPart("text", _text("messages", [block])))
    return parts


def _text(field: str, content: str | Sequence[Block | ResultBlock]) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise not_yet(field, f"{field} with a block of type {block.type[:64]!r}")
    return "\n".join(block.text or "" for block in content)


def message(call: MessagesCall, completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the whole answer of a completion that has ended."""
    answer = Answer.whole(completion, call.speech, tokenizer)
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        thinking = "".join(answer.reasoning)
        content.append({"type": "thinking", "thinking": thinking, "signature": ""})
    text = "".join(answer.text)
    if text or not answer.calls:
        content.append({"type": "text", "text": text, "citations": None})
    content += [
        {
            "type": "tool_use",
            "id": named.id.replace("call_", "toolu_"),
            "name": named.call.name,
            "input": json.loads(named.call.arguments),
        }
        for named in answer.calls
        if named.is_whole
    ]
    return _head(call, completion, content, len(completion.output_ids)) | _stop(call, answer)


def _head(
    call: MessagesCall, completion: Completion, content: list[dict[str, Any]], num_outputs: int
) -> dict[str, Any]:
    tokens = count([completion], num_outputs)
    return {
        "id": call.id,
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": tokens.prompt - tokens.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": tokens.cached,
            "output_tokens": tokens.output,
        },
    }


def _stop(call: MessagesCall, answer: Answer) -> dict[str, Any]:
    finish, matched = answer.finish, answer.matched
    if finish == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if finish == "stop":
        is_text = isinstance(matched, str)
        reason = "stop_sequence" if is_text else "end_turn"
        return {"stop_reason": reason, "stop_sequence": matched if is_text else None}
    if finish == "length":
        is_own = len(answer.completion.output_ids) >= call.max_tokens
        reason = "max_tokens" if is_own else "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": None}
    return {"stop_reason": None, "stop_sequence": None}  # the operator ended it


class MessagesStream:
    """Events of one streamed message: blocks of one kind after another."""

    def __init__(self, call: MessagesCall, completion: Completion, tokenizer: Tokenizer) -> None:
        self._call = call
        self._completion = completion
        self._answer = Answer(completion, call.speech, tokenizer)
        self._index = -1
        self._num_calls = 0
        self._open: str | None = None
        self._has_begun = False

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """Return the events that ``deltas`` make."""
        events: list[dict[str, Any]] = []
        for delta in deltas:
            if not self._has_begun:
                self._has_begun = True
                head = _head(self._call, self._completion, [], delta.num_outputs)
                events.append({"type": "message_start", "message": head})
            for part in self._answer.read(delta):
                events += self._part(part)
            if delta.end is not None:
                events += self._end()
        return b"".join(map(named_event, events))

    def _part(self, part: Part) -> list[dict[str, Any]]:
        if part.call is not None:
            named = self._answer.calls[self._num_calls]
            self._num_calls += 1
            block = {"type": "tool_use", "id": named.id.replace("call_", "toolu_")}
            block |= {"name": part.call.name, "input": {}}
            begin = self._begin("call", block)
            if part.is_open:
                return begin
            return [*begin, self._input(part.call.arguments), *self._close()]
        if part.kind == "arguments":
            return [self._input(part.text), *(self._close() if part.is_last else [])]
        if part.kind == "reasoning":
            block = {"type": "thinking", "thinking": "", "signature": ""}
            delta = {"type": "thinking_delta", "thinking": part.text}
        else:
            block = {"type": "text", "text": "", "citations": None}
            delta = {"type": "text_delta", "text": part.text}
        begin = [] if self._open == part.kind else self._begin(part.kind, block)
        return [*begin, self._delta(delta)]

    def _input(self, text: str) -> dict[str, Any]:
        return self._delta({"type": "input_json_delta", "partial_json": text})

    def _begin(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        closed = self._close()
        self._index += 1
        self._open = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*closed, start]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        is_thought, self._open = self._open == "reasoning", None
        signed = [self._delta({"type": "signature_delta", "signature": ""})] if is_thought else []
        return [*signed, {"type": "content_block_stop", "index": self._index}]

    def _end(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if self._index < 0:
            events += self._begin("text", {"type": "text", "text": "", "citations": None})
        events += self._close()
        usage = _head(self._call, self._completion, [], len(self._completion.output_ids))["usage"]
        stop = _stop(self._call, self._answer)
        return [
            *events,
            {"type": "message_delta", "delta": stop, "usage": usage},
            {"type": "message_stop"},
        ]
