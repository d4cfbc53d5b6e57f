"""Types of results: what constrains a gen to them, and how its text is read."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args, get_origin

import msgspec

INTEGER = r"-?(0|[1-9][0-9]*)"
NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a result has to be.

    Attributes:
        name: For errors.
        params: Sampling parameters that constrain the text: ``regex`` or ``json_schema``.
        choices: The texts that are allowed, where these are few: a select, not a gen.
        read: Returns the value of a text.

    ``read`` raises ValueError where the text is of another shape.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    choices: list[str] | None = None
    read: Callable[[str], Any] = str


def shape_of(kind: Any) -> Shape:
    """Return the shape of a type.

    Args:
        kind: ``str``, ``int``, ``float``, ``bool``, a ``Literal``, an ``Enum``, a compiled
            pattern, a pydantic model, or anything that msgspec reads: dataclasses, structs,
            typed dictionaries, lists of those.

    Raises:
        TypeError: It is none of these.
    """
    if kind is str:
        return Shape(name="str")
    if kind is int:
        return Shape(name="int", params={"regex": INTEGER}, read=lambda text: int(text.strip()))
    if kind is float:
        return Shape(name="float", params={"regex": NUMBER}, read=lambda text: float(text.strip()))
    if kind is bool:
        return _chosen("bool", {"true": True, "false": False})
    if isinstance(kind, re.Pattern):
        return pattern_shape(cast("re.Pattern[str]", kind).pattern)
    if get_origin(kind) is Literal:
        values = get_args(kind)
        return _chosen(str(kind).removeprefix("typing."), {str(value): value for value in values})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _chosen(kind.__name__, {str(member.value): member for member in kind})
    if hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate_json"):
        return Shape(
            name=kind.__name__,
            params={"json_schema": json.dumps(_closed(kind.model_json_schema()))},
            read=kind.model_validate_json,  # pydantic's error is a ValueError
        )
    return _json_shape(kind)


def pattern_shape(pattern: str) -> Shape:
    """Return the shape of texts that match ``pattern`` from end to end."""
    compiled = re.compile(pattern)

    def read(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(f"it does not match {pattern!r}")
        return text

    return Shape(name=f"text that matches {pattern!r}", params={"regex": pattern}, read=read)


def schema_shape(schema: Any) -> Shape:
    """Return the shape of JSON by a schema: a mapping, its text, or a pydantic model."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    text = schema if isinstance(schema, str) else json.dumps(schema)
    json.loads(text)
    return Shape(name="JSON", params={"json_schema": text})


def _closed(schema: Any) -> Any:
    """Return a type's schema that allows no fields but the type's own."""
    if isinstance(schema, list):
        return [_closed(part) for part in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    parts = cast("dict[str, Any]", schema)
    closed = {name: _closed(part) for name, part in parts.items()}
    if "properties" in parts:
        closed.setdefault("additionalProperties", False)
    return closed


def _chosen(name: str, values: Mapping[str, Any]) -> Shape:
    def read(text: str) -> Any:
        if text.strip() not in values:
            raise ValueError(f"it is none of {', '.join(values)}")
        return values[text.strip()]

    return Shape(name=name, choices=list(values), read=read)


def _json_shape(kind: Any) -> Shape:
    name = getattr(kind, "__name__", str(kind))
    try:
        schema = msgspec.json.schema(kind)
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
    except (TypeError, RuntimeError, NameError) as error:
        raise TypeError(f"{name} is not a type that a result can have: {error}") from error

    def read(text: str) -> Any:
        try:
            return decoder.decode(text)
        except msgspec.DecodeError as error:  # a ValueError in newer versions only
            raise ValueError(str(error)) from error

    return Shape(name=name, params={"json_schema": json.dumps(_closed(schema))}, read=read)
