"""Messages and tools of a chat, as every chat protocol hands them over: to what templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.requests import SamplingParams
from headstock.server.protocols.choices import AUTO, Choice
from headstock.server.protocols.parameters import not_yet
from headstock.server.speech import Dialect, Speech
from headstock.text.parsers import Tools

MAX_MESSAGES = 2048
MAX_TOOLS = 512
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
IMAGE_PARTS = frozenset({"image_url", "input_image"})
VIDEO_PARTS = frozenset({"video_url"})


class ImageUrl(msgspec.Struct):
    """Where an image is, as OpenAI's chats have it."""

    url: str
    detail: str | None = None


class ContentPart(msgspec.Struct):
    """A part of a message: text or an image.

    Attributes:
        image_url: An image's; OpenAI's responses have it bare, with ``detail`` beside it.
        video_url: A video's.
    """

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None
    video_url: ImageUrl | str | None = None
    detail: str | None = None


class BareImage(ContentPart):
    """An image of a protocol that gives base64 alone, elsewhere than among the parts.

    Attributes:
        where: What the caller calls it.
    """

    where: str = ""


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
    messages: Sequence[ChatMessage],
    dialect: Dialect | None = None,
    images: list[Source] | None = None,
) -> list[dict[str, Any]]:
    """Return messages as templates read them: content is text, or parts of text and images.

    Args:
        messages: As they were sent.
        dialect: Whether the template shows calls; None: it is not asked.
        images: Where the images of the parts go, in order; None: there may be none.

    Raises:
        RequestError: There are too many, or one has a part that is not text.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(
            f"messages has {len(messages)} items; 1 to {MAX_MESSAGES} are allowed.",
            remedy="Send at least one message, and drop old ones.",
            field="messages",
        )
    return [_flat(index, message, dialect, images) for index, message in enumerate(messages)]


def _flat(
    index: int, message: ChatMessage, dialect: Dialect | None, images: list[Source] | None
) -> dict[str, Any]:
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
        content = [
            _flat_part(f"{where}.content[{place}]", part, images)
            for place, part in enumerate(content)
        ]
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


def _flat_part(where: str, part: ContentPart, images: list[Source] | None) -> dict[str, Any]:
    """Return a part as templates read it; of an image they see that there is one, and no more."""
    if part.type in TEXT_PARTS and part.text is not None:
        return {"type": "text", "text": part.text}
    if part.type in VIDEO_PARTS and part.video_url is not None and images is not None:
        video = part.video_url
        url = video if isinstance(video, str) else video.url
        images.append(Source(f"{where}.video_url", url, kind="video"))
        return {"type": "video"}
    image = part.image_url
    if part.type not in IMAGE_PARTS or image is None or images is None:
        raise not_yet("messages", f"{where} of type {part.type[:64]!r}")
    url, detail = (image, part.detail) if isinstance(image, str) else (image.url, image.detail)
    if detail not in (None, "auto", "high"):
        raise RequestError(
            f"{where}.detail is {detail[:64]!r}; images are taken as they are.",
            remedy='Use "auto" or "high".',
            field=f"{where}.detail",
            code="not_supported",
        )
    if isinstance(part, BareImage):
        images.append(Source(part.where, url, is_bare=True))
    else:
        images.append(Source(f"{where}.image_url", url))
    return {"type": "image"}


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
    shown: dict[str, Any] = {"name": function.name, "description": function.description or ""}
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}


def strict_names(tools: Sequence[Tool] | None) -> frozenset[str]:
    """Return the functions whose arguments must obey their schemas."""
    functions = [tool.function for tool in tools or () if tool.function is not None]
    return frozenset(function.name for function in functions if function.strict)


def spoken(params: SamplingParams, speech: Speech | None, dialect: Dialect) -> SamplingParams:
    """Return ``params`` that keep the marks by which the text is split into its parts."""
    wanted = (
        ()
        if speech is None
        else (name for name in ("reasoning", "calls") if getattr(speech, name) is not None)
    )
    if dialect.special.isdisjoint(wanted):
        return params
    return msgspec.structs.replace(params, skip_special_tokens=False)


def speech_of(
    dialect: Dialect,
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: Choice = AUTO,
    strict: frozenset[str] = frozenset(),
    separates: bool = True,
    has_parallel_calls: bool = True,
    is_continued: bool = False,
) -> Speech | None:
    """Return which parts are separated in the answers of a chat; None: none.

    Args:
        dialect: Of the served model.
        tools: Functions that may be called, as templates read them.
        choice: Whether and which of them are called.
        strict: Those whose arguments must obey their schemas.
        separates: Whether thoughts are parted from words.
        has_parallel_calls: Whether one answer may have several calls.
        is_continued: Whether the prompt ends with the beginning of the answer.

    Raises:
        RequestError: The model has not learned to call functions, or there are none to choose from.
    """
    choice.check([tool["function"]["name"] for tool in tools])
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
        if choice.only is None or tool["function"]["name"] in choice.only
    }
    return Speech(
        reasoning=reasoning,
        calls=dialect.calls if tools else None,
        tools=schemas,
        max_calls=None if has_parallel_calls and not choice.is_named else 1,
        is_continued=is_continued,
        must_call=choice.must_call,
        strict=strict & schemas.keys() if tools else frozenset(),
        tokens=dialect.tokens,
    )


def thinking_variables(is_on: bool | None) -> dict[str, Any]:
    """Return the template variables by which model families turn thinking on and off."""
    return {} if is_on is None else {"enable_thinking": is_on, "thinking": is_on}


def effort_variables(effort: str | float | None) -> dict[str, Any]:
    """Return the template variables that say how much the model thinks; ``none``: not at all."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | thinking_variables(False if effort == "none" else None)
