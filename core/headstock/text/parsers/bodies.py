"""What stands between the marks of a call, by kind of writing. Each reader takes anything."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from headstock.text.parsers.parts import Call, Tools

_ARGUMENTS = ("arguments", "parameters")
_DECODER = json.JSONDecoder()
_MAX_CALLS = 128
_MAX_PYTHON = 1 << 16
"""Longest text that is parsed as Python, whose tree takes a hundred times as much. Characters."""
_SPACE = re.compile(r"\s*")


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


@dataclass(frozen=True, slots=True)
class Tag:
    """How something begins and ends in a text.

    Its end is looked for as it stands: an expression that runs to an end which is missing is tried
    again from every beginning, and takes the square of the text's length.

    Attributes:
        head: Group ``name``; ``is_text`` where the tag tells. Begins with what is rare, and is
            bounded.
        end: What follows; "": the text's own end.
        is_trimmed: Whether a line's end before it belongs to it.
    """

    head: re.Pattern[str]
    end: str
    is_trimmed: bool = False

    def inner(self, text: str, head: re.Match[str]) -> tuple[str, int] | None:
        """Return what stands between ``head`` and the end, and where that is; None: nowhere."""
        at = text.find(self.end, head.end()) if self.end else len(text)
        if at < 0:
            return None
        inner = text[head.end() : at]
        return inner.removesuffix("\n") if self.is_trimmed else inner, at + len(self.end)


def read_tagged(body: str, tools: Tools, call: Tag, parameter: Tag) -> list[Call] | None:
    """Read calls whose parameters stand in tags of their own.

    Args:
        body: What the marks enclose: calls, and white space.
        tools: Their schemas tell text from numbers.
        call: How a call is written.
        parameter: How each of its parameters is.
    """
    calls: list[Call] = []
    at = _past_space(body, 0)
    while at < len(body):
        head = call.head.match(body, at)
        found = call.inner(body, head) if head is not None else None
        if head is None or found is None or len(calls) == _MAX_CALLS:
            return None
        name = head.group("name").strip()
        calls.append(
            Call(name, _written(_parameters(found[0], _properties(tools, name), parameter)))
        )
        at = _past_space(body, found[1])
    return calls or None


def _parameters(text: str, properties: Mapping[str, Any], tag: Tag) -> dict[str, object]:
    values: dict[str, object] = {}
    at = 0
    while (head := tag.head.search(text, at)) and (found := tag.inner(text, head)):
        values[head.group("name").strip()] = _value(head, found[0], properties)
        at = found[1]
    return values


def _past_space(text: str, at: int) -> int:
    """Return where the white space that begins at ``at`` ends."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _properties(tools: Tools, name: str) -> Mapping[str, Any]:
    properties: object = tools.get(name, {}).get("properties")
    return cast("Mapping[str, Any]", properties) if isinstance(properties, Mapping) else {}


def _value(head: re.Match[str], text: str, properties: Mapping[str, Any]) -> object:
    flag = head.groupdict().get("is_text")
    if flag is None:
        schema: object = properties.get(head.group("name").strip())
        fields = cast("Mapping[str, Any]", schema) if isinstance(schema, Mapping) else None
        is_text = fields is None or fields.get("type") == "string"
    else:
        is_text = flag == "true"
    if is_text:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_python(body: str, tools: Tools) -> list[Call] | None:
    """Read ``[f(a=1), g(b="x")]``: calls with literal keyword arguments."""
    if len(body) > _MAX_PYTHON:
        return None
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
            values = {str(word.arg): _literal(word.value) for word in node.keywords}
            calls.append(Call(ast.unparse(node.func), _written(values)))
        except (ValueError, TypeError, RecursionError):
            return None
    return calls or None


_JSON_NAMES = {"true": True, "false": False, "null": None}


class _JsonNames(ast.NodeTransformer):
    """Takes JSON's names for what Python calls True, False and None."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node


def _literal(node: ast.expr) -> object:
    return ast.literal_eval(cast("ast.expr", _JsonNames().visit(node)))


def read_bare(body: str, tools: Tools) -> list[Call] | None:
    """Read an answer that is nothing but calls of known functions, in JSON or Python."""
    calls = read_json(body, tools) or read_python(body, tools)
    return calls if calls and all(call.name in tools for call in calls) else None


def _written(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)
