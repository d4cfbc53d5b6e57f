"""Messages and tools of a chat, as every chat protocol hands them over: to what templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from headstock.errors import RequestError
from headstock.server.protocols.parameters import not_yet
from headstock.server.speech import Dialect, Speech
from headstock.text.parsers import Tools

MAX_MESSAGES = 2048
MAX_TOOLS = 512
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


class ContentPart(msgspec.Struct):
    """A part of a message; only text is supported."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct):
    """A function that the model has called."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(msgspec.Struct, omit_defaults=True):
    """A call in an earlier answer."""

    function: FunctionCall
    id: str | None = None
    type: str = "function"


class ChatMessage(msgspec.Struct, omit_defaults=True):
    """One message of a chat."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(msgspec.Struct, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, omit_defaults=True):
    """Something that the model may use; only functions are supported."""

    type: str = "function"
    function: Function | None = None


def flat_messages(
    messages: Sequence[ChatMessage], dialect: Dialect | None = None
) -> list[dict[str, Any]]:
    """Return messages as templates read them: content is text, or text parts.

    Args:
        messages: As they were sent.
        dialect: Whether the template shows calls; None: it is not asked.

    Raises:
        RequestError: There are too many, or one has a part that is not text.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(
            f"messages has {len(messages)} items; 1 to {MAX_MESSAGES} are allowed.",
            remedy="Send at least one message, and drop old ones.",
            field="messages",
        )
    return [_flat(index, message, dialect) for index, message in enumerate(messages)]


def _flat(index: int, message: ChatMessage, dialect: Dialect | None) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.role not in ("system", "developer", "user", "assistant", "tool"):
        raise RequestError(
            f"{where}.role is {message.role[:64]!r}.",
            remedy="Use system, developer, user, assistant or tool.",
            field="messages",
        )
    has_calls = bool(message.tool_calls) or message.role == "tool"
    if has_calls and dialect is not None and not dialect.takes_calls:
        raise RequestError(
            f"{where} is part of a call, and the model's chat template shows no calls.",
            remedy="Leave it out, or serve a model that was trained for tools.",
            field="messages",
            code="not_supported",
        )
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type not in TEXT_PARTS or part.text is None:
                raise not_yet("messages", f"{where}.content of type {part.type[:64]!r}")
        content = [{"type": "text", "text": part.text} for part in content]
    if content is None and message.role != "assistant":
        raise RequestError(f"{where}.content is null.", remedy="Give text.", field="messages")
    flat: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.tool_calls:
        flat["tool_calls"] = [_flat_call(call) for call in message.tool_calls]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            flat[name] = value
    return flat


def _flat_call(call: ToolCall) -> dict[str, Any]:
    """Return a call with its arguments as an object, which templates write their own way."""
    arguments: object = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = call.function.arguments  # what the model wrote, however wrong
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "", "type": "function", "function": function}


def read_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """Return functions as templates read them.

    Raises:
        RequestError: There are too many, or one is no function.
    """
    if tools is not None and len(tools) > MAX_TOOLS:
        raise RequestError(
            f"tools has {len(tools)} items; at most {MAX_TOOLS}.",
            remedy="Send fewer.",
            field="tools",
        )
    return [_tool(index, tool) for index, tool in enumerate(tools or ())]


def _tool(index: int, tool: Tool) -> dict[str, Any]:
    function = tool.function
    if tool.type != "function" or function is None:
        raise not_yet("tools", f"tools[{index}] of type {tool.type[:64]!r}")
    if function.strict:
        raise not_yet("tools", f"tools[{index}].function.strict")
    shown: dict[str, Any] = {"name": function.name, "description": function.description or ""}
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}


def speech_of(
    dialect: Dialect,
    tools: Sequence[Mapping[str, Any]],
    *,
    separates: bool = True,
    has_parallel_calls: bool = True,
    is_continued: bool = False,
) -> Speech | None:
    """Return what is told apart in the answers of a chat; None: nothing.

    Args:
        dialect: Of the served model.
        tools: Functions that may be called, as templates read them.
        separates: Whether thoughts are parted from words.
        has_parallel_calls: Whether one answer may have several calls.
        is_continued: Whether the prompt ends with the beginning of the answer.

    Raises:
        RequestError: The model has not learned to call functions.
    """
    if tools and (dialect.calls is None or not dialect.takes_tools):
        raise RequestError(
            "tools is set, and the model's chat template shows no tools in a form that is known.",
            remedy="Serve a model that was trained for tools, or name its --tool-call-parser.",
            field="tools",
            code="not_supported",
        )
    reasoning = dialect.reasoning if separates else None
    if reasoning is None and not tools:
        return None
    schemas: Tools = {
        tool["function"]["name"]: cast("Mapping[str, Any]", tool["function"]["parameters"])
        for tool in tools
    }
    return Speech(
        reasoning=reasoning,
        calls=dialect.calls if tools else None,
        tools=schemas,
        max_calls=None if has_parallel_calls else 1,
        is_continued=is_continued,
    )


def thinking_variables(is_on: bool | None) -> dict[str, Any]:
    """Return the template variables by which model families turn thinking on and off."""
    return {} if is_on is None else {"enable_thinking": is_on, "thinking": is_on}
