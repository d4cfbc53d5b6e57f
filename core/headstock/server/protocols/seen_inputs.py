"""What goes through the chat template to become a vector: chats, and items that have an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.server.protocols.messages import (
    BareImage,
    ChatMessage,
    ContentPart,
    flat_messages,
)
from headstock.server.request import ChatPrompt
from headstock.server.speech import Dialect


class SeenInput(msgspec.Struct, kw_only=True):
    """What a user's message shows and says.

    Attributes:
        text: Behind the image, if there is one.
        image: A data URL, an address or base64.
    """

    text: str | None = None
    image: str | None = None


def chat_prompt(
    messages: Sequence[ChatMessage],
    dialect: Dialect,
    *,
    extra: Mapping[str, Any],
    add_generation_prompt: bool,
    continue_final: bool,
) -> ChatPrompt:
    """Return a chat whose last token's vector is wanted.

    Raises:
        RequestError: A message is at fault.
    """
    images: list[Source] = []
    return ChatPrompt(
        flat_messages(messages, dialect, images),
        images=images,
        extra=dict(extra),
        add_generation_prompt=add_generation_prompt,
        continue_final=continue_final,
    )


def seen_prompt(index: int, item: SeenInput, dialect: Dialect) -> ChatPrompt:
    """Return a user's message that shows the image, then says the text.

    Args:
        index: Of the item in ``input``.
        item: What the caller sent.
        dialect: What the model's chat template has.

    Raises:
        RequestError: There is neither.
    """
    where = f"input[{index}]"
    parts: list[ContentPart] = []
    if item.image is not None:
        image = BareImage(type="image_url", image_url=item.image, where=f"{where}.image")
        parts.append(image)
    if item.text is not None:
        parts.append(ContentPart(type="text", text=item.text))
    if not parts:
        raise RequestError(
            f"{where} has neither text nor image.",
            remedy="Give one of them, or both.",
            field=where,
            code="missing_prompt",
        )
    message = ChatMessage("user", parts)
    return chat_prompt(
        [message], dialect, extra={}, add_generation_prompt=False, continue_final=False
    )
