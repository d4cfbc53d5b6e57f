"""What can be refused of a grammar by looking at it: sizes, before anything is compiled."""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from headstock.errors import RequestError
from headstock.requests.grammar import Grammar

MAX_BYTES = 64 * 1024
MAX_LARK_BYTES = 256 * 1024
"""Of a grammar that this server wrote, such as that of many functions."""
MAX_DEPTH = 64
"""Objects and arrays inside one another."""
MAX_NODES = 20_000
"""Values of a JSON description, and branches of a pattern."""
MAX_ENUM = 5_000
"""Values of one ``enum``, and choices."""
MAX_REPEAT = 1_000_000
"""Largest count of a repetition."""
_COUNTS = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
)
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_SHOWN_DIGITS = 20


def check_grammar(grammar: Grammar) -> None:
    """Refuse a grammar that is too large, or that is not of its kind.

    Raises:
        RequestError: ``grammar_too_complex`` or ``invalid_grammar``, naming the caller's field.
    """
    size = len(grammar.text.encode("utf-8", "surrogatepass"))
    limit = MAX_LARK_BYTES if grammar.kind == "lark" else MAX_BYTES
    if size > limit:
        raise _too_complex(grammar, f"has {size} bytes; at most {limit}")
    if grammar.kind != "json_object" and not grammar.text.strip():
        raise _invalid(grammar, "is empty")
    if grammar.kind in ("regex", "ebnf"):
        _check_pattern(grammar)
    elif grammar.kind not in ("json_object", "lark"):
        _check_json(grammar, _decode(grammar))


def _decode(grammar: Grammar) -> Any:
    try:
        return msgspec.json.decode(grammar.text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise _invalid(grammar, f"is not JSON: {error}") from error


def _check_pattern(grammar: Grammar) -> None:
    if grammar.text.count("|") > MAX_NODES:
        raise _too_complex(grammar, f"has more than {MAX_NODES} branches")
    if _nesting(grammar.text) > MAX_DEPTH:
        raise _too_complex(grammar, f"is nested more than {MAX_DEPTH} deep")
    for match in _REPEAT.finditer(grammar.text):
        for count in match.groups(default=""):
            _check_count(grammar, count)


def _nesting(text: str) -> int:
    """Return how deep parentheses are nested; escaped ones do not count."""
    depth = deepest = 0
    is_escaped = False
    for char in text:
        if is_escaped:
            is_escaped = False
        elif char == "\\":
            is_escaped = True
        elif char == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif char == ")":
            depth -= 1
    return deepest


def _check_count(grammar: Grammar, digits: str) -> None:
    if len(digits) > _SHOWN_DIGITS or (digits and int(digits) > MAX_REPEAT):
        shown = digits if len(digits) <= _SHOWN_DIGITS else digits[:_SHOWN_DIGITS] + "…"
        raise _too_complex(grammar, f"repeats something {shown} times; at most {MAX_REPEAT}")


def _check_json(grammar: Grammar, value: Any) -> None:
    if grammar.kind == "choice":
        _check_choices(grammar, value)
    elif not isinstance(value, dict | bool) or value is False:
        raise _invalid(grammar, "is not a JSON object")
    num_nodes = 0
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        node, depth = pending.pop()
        num_nodes += 1
        if num_nodes > MAX_NODES:
            raise _too_complex(grammar, f"has more than {MAX_NODES} values")
        if not isinstance(node, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise _too_complex(grammar, f"is nested more than {MAX_DEPTH} deep")
        if isinstance(node, dict):
            fields = cast("dict[str, Any]", node)
            _check_object(grammar, fields)
            pending += [(child, depth + 1) for child in fields.values()]
        else:
            pending += [(child, depth + 1) for child in cast("list[Any]", node)]


def _check_object(grammar: Grammar, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name == "enum" and isinstance(value, list):
            count = len(cast("list[Any]", value))
            if count > MAX_ENUM:
                raise _too_complex(grammar, f"has an enum of {count} values; at most {MAX_ENUM}")
        elif name in _COUNTS and isinstance(value, int):
            _check_count(grammar, str(max(0, value)))
        elif name == "pattern" and isinstance(value, str):
            _check_pattern(Grammar("regex", value, grammar.field))


def _check_choices(grammar: Grammar, value: Any) -> None:
    choices = cast("list[Any]", value) if isinstance(value, list) else []
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise _invalid(grammar, "is not a list of texts that are not empty")
    if len(choices) > MAX_ENUM:
        raise _too_complex(grammar, f"has {len(choices)} choices; at most {MAX_ENUM}")


def _invalid(grammar: Grammar, what: str) -> RequestError:
    return RequestError(
        f"{grammar.field or grammar.kind} {what}.",
        remedy="See docs/structured-outputs.md for what is supported.",
        field=grammar.field or None,
        code="invalid_grammar",
    )


def _too_complex(grammar: Grammar, what: str) -> RequestError:
    return RequestError(
        f"{grammar.field or grammar.kind} {what}.",
        remedy="Use a smaller one.",
        field=grammar.field or None,
        code="grammar_too_complex",
    )
