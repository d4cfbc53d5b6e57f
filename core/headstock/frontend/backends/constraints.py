"""Results of a given form, from APIs that constrain to a JSON schema and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from headstock.errors import RequestError

KEY = "value"
"""A choice or a pattern is asked for as this one field of an object."""


def of_params(params: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """Take the constraint out of sampling parameters.

    Returns:
        A JSON schema, None where there is no constraint; and whether the text is its one field.

    Raises:
        RequestError: A grammar is asked for.
    """
    if params.pop("ebnf", None) is not None:
        raise RequestError(
            "This endpoint cannot constrain a text to a grammar.",
            remedy="Use a JSON schema.",
            field="ebnf",
            code="not_supported",
        )
    pattern = params.pop("regex", None)
    if pattern is not None:
        return wrapped({"type": "string", "pattern": f"^(?:{pattern})$"}), True
    schema = params.pop("json_schema", None)
    if schema is None:
        return None, False
    found: dict[str, Any] = json.loads(schema) if isinstance(schema, str) else dict(schema)
    found = closed(inlined(found))
    if found.get("type") != "object":
        definitions = found.pop("$defs", None)
        return wrapped(found) | ({"$defs": definitions} if definitions else {}), True
    return found, False


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that is no reference to one of its own definitions."""
    reference = schema.get("$ref", "")
    if not reference.startswith("#/$defs/"):
        return schema
    definitions = schema["$defs"]
    return {**definitions[reference.removeprefix("#/$defs/")], "$defs": definitions}


def closed(schema: Any) -> Any:
    """Return a schema whose objects take no other fields than those that it names."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return found


def is_strict(schema: Any) -> bool:
    """Return whether every object of a schema requires all its fields, as strict modes want."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    fields = schema.get("properties", {})
    if schema.get("type") == "object" and set(schema.get("required", ())) != set(fields):
        return False
    return all(map(is_strict, schema.values()))


def of_choices(choices: Sequence[str]) -> dict[str, Any]:
    """Return the schema of one of ``choices``."""
    return wrapped({"type": "string", "enum": list(choices)})


def wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with one field."""
    return {
        "type": "object",
        "properties": {KEY: schema},
        "required": [KEY],
        "additionalProperties": False,
    }


def unwrap(text: str) -> str:
    """Return the one field of an object.

    Raises:
        RequestError: The endpoint did not keep to the schema.
    """
    try:
        value = msgspec.json.decode(text, type=dict[str, Any])[KEY]
    except (msgspec.DecodeError, KeyError) as error:
        raise RequestError(
            f"The endpoint did not keep to the form that it was asked for: {text[:200]!r}.",
            remedy="Use a model and server that constrain their output.",
            code="invalid_result",
        ) from error
    return value if isinstance(value, str) else json.dumps(value)


def chosen(text: str, choices: Sequence[str]) -> int:
    """Return which of ``choices`` the one field of an object is.

    Raises:
        RequestError: None of them.
    """
    value = unwrap(text)
    if value not in choices:
        raise RequestError(
            f"The endpoint chose {value[:200]!r}, which is not a choice.",
            remedy="Use a model and server that constrain their output.",
            code="invalid_result",
        )
    return list(choices).index(value)
