"""``text`` of ``/v1/responses``: the form of the answer's words."""

from __future__ import annotations

from typing import Any

import msgspec

from headstock.requests import Grammar
from headstock.server.protocols.grammars import ResponseFormat, response_grammar
from headstock.server.protocols.parameters import not_yet


class TextFormat(msgspec.Struct):
    """The form of the answer: ``text``, ``json_object`` or ``json_schema``."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct):
    """What the answer looks like."""

    format: TextFormat | None = None
    verbosity: str | None = None


def text_grammar(text: TextOptions | None) -> Grammar | None:
    """Return what the answer's words must look like.

    Raises:
        RequestError: The form is not known, or its schema is missing.
    """
    wanted = text.format if text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type not in ("json_object", "json_schema"):
        raise not_yet("text.format", f"text.format of type {wanted.type[:64]!r}")
    described = {"schema": wanted.schema}
    return response_grammar(ResponseFormat(wanted.type, json_schema=described), "text.format")


def shown_format(text: TextOptions | None) -> dict[str, Any]:
    """Return the form as answers repeat it."""
    wanted = text.format if text is not None and text.format is not None else TextFormat("text")
    fields = msgspec.to_builtins(wanted)
    return {name: value for name, value in fields.items() if value is not None}
