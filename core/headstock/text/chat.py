"""Messages as a model's chat template wants them, and the text of a turn to continue.

A client gives a message's content as text or as a list of parts; templates read the one, the other,
or both. Which, is found out by rendering one message in either form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from headstock.errors import RequestError
from headstock.text.template import ChatTemplate

Message = Mapping[str, Any]

JOINT = " "
"""What stands between the text parts of a message for a template that reads text only."""
_PROBES = ("headstock-first-part", "headstock-second-part")
_MARK = "HEADSTOCK-CONTINUES-HERE"


@dataclass(frozen=True, slots=True)
class ContentForms:
    """Forms of ``content`` that a template reads.

    Attributes:
        text: A string.
        parts: A list of ``{"type": "text", "text": …}``.
    """

    text: bool
    parts: bool


def forms_of(template: ChatTemplate) -> ContentForms:
    """Return what ``template`` reads; text, where it shows neither."""
    reads_parts = _shows(template, [_part(text) for text in _PROBES])
    return ContentForms(text=_shows(template, _PROBES[0]) or not reads_parts, parts=reads_parts)


def render_chat(
    template: ChatTemplate,
    forms: ContentForms,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
    tools: Sequence[Mapping[str, object]] | None = None,
    extra: Mapping[str, object] | None = None,
) -> str:
    """Return the prompt text of a chat.

    Args:
        template: The model's.
        forms: What it reads, as :func:`forms_of` found out.
        messages: ``role`` and ``content`` (text, or text parts), in the conversation's order.
        add_generation_prompt: End with the words that begin an assistant's turn.
        continue_final: End where the last message's content does, as the template writes it.
        tools: Functions that the model may call, as templates read them.
        extra: More variables for the template.

    Raises:
        RequestError: The template refuses the messages, or does not show the last one.
    """
    fitting = [_fitted(message, forms) for message in messages]
    if not continue_final:
        return template.render(
            fitting, add_generation_prompt=add_generation_prompt, tools=tools, extra=extra
        )
    content: object = fitting[-1].get("content")
    # A blank after the mark shows whether the template trims contents: then the blanks that end
    # this one are not part of the prompt either.
    fitting[-1] = {**fitting[-1], "content": _with_end(content, f"{_MARK} ")}
    rendered = template.render(fitting, add_generation_prompt=False, tools=tools, extra=extra)
    before, mark, after = rendered.rpartition(_MARK)
    if not mark or _text_of(_parts_of(content)[-1:]).strip() not in before:
        raise RequestError(
            "The model's chat template does not show the last message's content as it is, so there"
            " is not a place where it could be continued.",
            remedy="Leave out continue_final_message, or change that content.",
            field="continue_final_message",
            code="template_failed",
        )
    # A template may show the content more than once; it is continued after the last time.
    before = before.replace(f"{_MARK} ", "").replace(_MARK, "")
    return before if after.startswith(" ") else before.rstrip()


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _shows(template: ChatTemplate, content: str | list[dict[str, str]]) -> bool:
    """Whether a message of ``content`` comes out as its text, and not as code of a list."""
    try:
        rendered = template.render([{"role": "user", "content": content}])
    except RequestError:
        return False
    is_code = "'type'" in rendered or '"type"' in rendered
    probes = _PROBES[:1] if isinstance(content, str) else _PROBES
    return all(probe in rendered for probe in probes) and not is_code


def _fitted(message: Message, forms: ContentForms) -> dict[str, Any]:
    """Return ``message`` with its content in a form that is read, changed only where it is not."""
    content: object = message.get("content")
    if isinstance(content, str) and not forms.text:
        return {**message, "content": [_part(content)]}
    if content is not None and not isinstance(content, str) and not forms.parts:
        return {**message, "content": _text_of(content)}
    return dict(message)


def _parts_of(content: object) -> list[Mapping[str, Any]]:
    """Return the parts of a content, a single one of text."""
    if isinstance(content, list):
        return cast("list[Mapping[str, Any]]", content)
    return [_part(content if isinstance(content, str) else "")]


def _text_of(content: object) -> str:
    return JOINT.join(str(part.get("text") or "") for part in _parts_of(content))


def _with_end(content: object, end: str) -> object:
    """Return ``content`` with ``end`` after its text, or after that of its last part."""
    *others, last = _parts_of(content)
    text = _text_of([last]) + end
    return [*others, _part(text)] if isinstance(content, list) else text
