"""What stands between the marks of a call, by kind of writing. Each reader takes anything."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from headstock.text.parsers.parts import Call, Tools

_ARGUMENTS = ("arguments", "parameters")
_DECODER = json.JSONDecoder()
_MAX_CALLS = 128


def read_json(body: str, tools: Tools) -> list[Call] | None:
    """Read ``{"name": …, "arguments": {…}}``: one, a list, or several after one another."""
    calls: list[Call] = []
    rest = body.strip()
    while rest:
        try:
            value, end = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        items = cast("list[object]", value) if isinstance(value, list) else [value]
        for item in items:
            call = _of_object(item)
            if call is None or len(calls) == _MAX_CALLS:
                return None
            calls.append(call)
        rest = rest[end:].lstrip(" \n\r\t;,")
    return calls or None


def _of_object(item: object) -> Call | None:
    if not isinstance(item, dict):
        return None
    fields = cast("dict[str, Any]", item)
    if isinstance(fields.get("function"), dict):
        fields = cast("dict[str, Any]", fields["function"])
    name = fields.get("name")
    found = [fields[key] for key in _ARGUMENTS if key in fields]
    if not isinstance(name, str) or not name or len(found) > 1:
        return None
    arguments: object = found[0] if found else {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(name, _written(cast("dict[str, Any]", arguments)))


def read_named(body: str, heads: Iterable[re.Pattern[str]], tail: re.Pattern[str]) -> list[Call]:
    """Read calls that are a head with the function's name, a JSON object, and a tail.

    Returns:
        None of them where one is not written so.
    """
    calls: list[Call] = []
    at = 0
    while body[at:].strip():
        head = next((found for head in heads if (found := head.match(body, at))), None)
        if head is None or len(calls) == _MAX_CALLS:
            return []
        try:
            value, at = _DECODER.raw_decode(body, head.end())
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        calls.append(Call(head.group(1), _written(cast("dict[str, Any]", value))))
        closed = tail.match(body, at)
        at = closed.end() if closed else at
    return calls


def read_tagged(
    body: str, tools: Tools, call: re.Pattern[str], parameter: re.Pattern[str]
) -> list[Call] | None:
    """Read calls whose parameters stand in tags of their own.

    Args:
        body: What the marks enclose.
        tools: Their schemas tell text from numbers.
        call: Groups ``name`` and ``body``.
        parameter: Groups ``name`` and ``value``, and ``is_text`` where the tag tells.
    """
    calls: list[Call] = []
    for found in call.finditer(body):
        name = found.group("name").strip()
        properties = _properties(tools, name)
        values = {
            item.group("name").strip(): _value(item, properties)
            for item in parameter.finditer(found.group("body"))
        }
        calls.append(Call(name, _written(values)))
    is_whole = not call.sub("", body).strip()
    return calls if calls and is_whole and len(calls) <= _MAX_CALLS else None


def _properties(tools: Tools, name: str) -> Mapping[str, Any]:
    properties: object = tools.get(name, {}).get("properties")
    return cast("Mapping[str, Any]", properties) if isinstance(properties, Mapping) else {}


def _value(item: re.Match[str], properties: Mapping[str, Any]) -> object:
    text = item.group("value")
    told = item.groupdict().get("is_text")
    if told is None:
        schema: object = properties.get(item.group("name").strip())
        fields = cast("Mapping[str, Any]", schema) if isinstance(schema, Mapping) else None
        is_text = fields is None or fields.get("type") == "string"
    else:
        is_text = told == "true"
    if is_text:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_python(body: str, tools: Tools) -> list[Call] | None:
    """Read ``[f(a=1), g(b="x")]``: calls with literal keyword arguments."""
    try:
        tree = ast.parse(body.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = tree.elts if isinstance(tree, ast.List) else [tree]
    calls: list[Call] = []
    for node in nodes:
        if not isinstance(node, ast.Call) or node.args or len(calls) == _MAX_CALLS:
            return None
        try:
            values = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
            calls.append(Call(ast.unparse(node.func), _written(values)))
        except (ValueError, TypeError, RecursionError):
            return None
    return calls or None


def read_bare(body: str, tools: Tools) -> list[Call] | None:
    """Read an answer that is nothing but calls of known functions, in JSON or Python."""
    calls = read_json(body, tools) or read_python(body, tools)
    return calls if calls and all(call.name in tools for call in calls) else None


def _written(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)
