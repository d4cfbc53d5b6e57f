"""OpenAI's responses: their bodies, as chats."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.requests import SamplingParams
from headstock.requests.sampling import Int64
from headstock.server.model_card import ModelCard
from headstock.server.protocols.choices import read_choice
from headstock.server.protocols.messages import (
    ChatMessage,
    ContentPart,
    Function,
    FunctionCall,
    Tool,
    ToolCall,
    effort_variables,
    flat_messages,
    read_tools,
    speech_of,
    spoken,
    strict_names,
)
from headstock.server.protocols.parameters import (
    CHANGE_ANSWERS,
    check_model,
    join_namespace,
    not_yet,
    to_params,
)
from headstock.server.protocols.text_options import TextOptions, text_grammar
from headstock.server.request import ChatPrompt, GenerateRequest
from headstock.server.speech import Dialect, Speech
from headstock.server.thought_budget import BUDGETS, read_budget

Budget = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None
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


class ResponsesBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/responses``."""

    REFUSES: ClassVar[frozenset[str]] = (CHANGE_ANSWERS - {"background"}) | {
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
    background: bool | None = None
    previous_response_id: str | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    thinking_budget: Budget = None
    thinking_token_budget: Budget = None
    max_thinking_tokens: Budget = None
    user: str | None = None
    safety_identifier: str | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the response is kept: one that is made in the background is."""
        return bool(self.store or self.background)


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


def read_response(
    body: ResponsesBody,
    card: ModelCard,
    dialect: Dialect,
    earlier: Sequence[ChatMessage] = (),
    tenant: str = "",
) -> ResponsesCall:
    """Turn a body of ``/v1/responses`` into a request.

    Args:
        body: As it was sent.
        card: The served model, for its name and defaults.
        dialect: How it writes thoughts and calls.
        earlier: The conversation that it follows.
        tenant: Prefix of the cache namespace.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    _check(body)
    choice, shown = read_choice(body.tool_choice), _tools(body.tools or [])
    tools = [] if choice.is_off else read_tools(shown)
    speech = speech_of(
        dialect,
        tools,
        choice=choice,
        strict=strict_names(shown),
        has_parallel_calls=body.parallel_tool_calls is not False,
    )
    items = [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    messages = [*earlier, *_messages(items)]
    call_id = f"resp_{uuid.uuid4().hex}"
    request = GenerateRequest(
        prompt=_prompt(body, messages, tools, dialect),
        params=spoken(_params(body, card), speech, dialect),
        rid=call_id,
        namespace=join_namespace(tenant, None, body.cache_salt),
        names=_NAMES,
        adapter=card.adapter,
        grammar=text_grammar(body.text),
        speech=speech,
        thoughts=read_budget(
            dialect.reasoning,
            [(name, getattr(body, name)) for name in BUDGETS],
            is_continued=False,
        ),
        user=body.safety_identifier or body.user or "",
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


def _params(body: ResponsesBody, card: ModelCard) -> SamplingParams:
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    given["max_new_tokens"] = body.max_output_tokens
    params = to_params(given, defaults=card.sampling_defaults, names=_NAMES)
    return msgspec.structs.replace(params, max_new_tokens=body.max_output_tokens)


def _prompt(
    body: ResponsesBody,
    messages: Sequence[ChatMessage],
    tools: list[dict[str, Any]],
    dialect: Dialect,
) -> ChatPrompt:
    lead = [ChatMessage("system", body.instructions)] if body.instructions else []
    extra = effort_variables(None if body.reasoning is None else body.reasoning.effort)
    extra |= body.chat_template_kwargs or {}
    images: list[Source] = []
    flat = flat_messages([*lead, *messages], dialect, images)
    return ChatPrompt(flat, tools=tools, extra=extra, images=images)


def _check(body: ResponsesBody) -> None:
    if body.background and body.store is False:
        raise RequestError(
            "background is true and store is false: the response could not be found.",
            remedy="Leave store out, or set it to true.",
            field="store",
        )
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
