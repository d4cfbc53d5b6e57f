"""The Lark grammar of an answer with calls, from the description of the model's format.

Marks that are special tokens are matched as those tokens, so that text which looks like one opens
nothing. Everything else is text, in whichever tokens the model writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from headstock.errors import RequestError
from headstock.requests.grammar import Grammar
from headstock.structured.checks import check_grammar
from headstock.structured.rules import Rules, escaped, fields_of, json_lark, quoted
from headstock.text.parsers import CallFormat, ReasoningFormat, Tagged, Writing

_NAME = re.compile(r"[\w.\-/]{1,128}")
_PYTHON_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that may be called.

    Attributes:
        name: Of the function.
        schema: JSON schema of its parameters.
        is_strict: Whether a schema that cannot be enforced whole is refused.
    """

    name: str
    schema: Mapping[str, Any]
    is_strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What an answer looks like.

    Attributes:
        calls: How calls are written; None: there are none.
        functions: Those that may be called.
        must_call: Whether the answer is calls and nothing else; else text may stand around them.
        is_single: Whether it has one call at most.
        content: Lark of the text beside calls, such as a schema's; "": any text.
        reasoning: How thoughts are marked; None: there are none.
        is_thinking: Whether the prompt has begun them.
    """

    calls: CallFormat | None
    functions: Sequence[Function] = ()
    must_call: bool = False
    is_single: bool = False
    content: str = ""
    reasoning: ReasoningFormat | None = None
    is_thinking: bool = False


def shape_to_lark(shape: Shape, special: Mapping[str, int], end_ids: Sequence[int]) -> str:
    """Return the grammar of ``shape``.

    Args:
        shape: What the answer looks like.
        special: Ids of special tokens by text.
        end_ids: Ids that end an answer: a mark that is one of them is left to that.

    Raises:
        ValueError: A name cannot be written in the format; says which.
    """
    return _Lark(special, end_ids).grammar(shape)


def shape_grammar(
    shape: Shape, special: Mapping[str, int], end_ids: Sequence[int], field: str
) -> Grammar:
    """Return the grammar of ``shape`` as a request carries it; its schemas are checked.

    Args:
        shape: What the answer looks like.
        special: Ids of special tokens by text.
        end_ids: Ids that end an answer.
        field: What the caller calls what asked for it.

    Raises:
        RequestError: A function's name or schema is not possible.
    """
    for function in shape.functions:
        check_grammar(Grammar("json_schema", json.dumps(function.schema), "tools"))
    try:
        return Grammar("lark", shape_to_lark(shape, special, end_ids), field)
    except ValueError as error:
        raise RequestError(
            f"tools: {error}.", remedy="Use letters, digits, _, - and dots.", field="tools"
        ) from error


def content_lark(wanted: Grammar) -> str | None:
    """Return the Lark of what words must look like; None: this kind stands for itself only."""
    match wanted.kind:
        case "json_object":
            return json_lark({"type": "object"})
        case "json_schema":
            check_grammar(wanted)
            return json_lark(json.loads(wanted.text))
        case "choice":
            check_grammar(wanted)
            return f"({' | '.join(map(quoted, json.loads(wanted.text)))})"
        case _:
            return None


class _Lark(Rules):
    """Collects the rules of an answer."""

    def grammar(self, shape: Shape) -> str:
        body = self._content(shape) if shape.calls is None else self._answer(shape, shape.calls)
        start = f"{self._thoughts(shape)} {body}".strip()
        return self.whole(start)

    # The answer

    def _thoughts(self, shape: Shape) -> str:
        """Return what comes before the answer's words and calls."""
        reasoning = shape.reasoning
        if reasoning is None:
            return "SPACE?" if shape.must_call else ""
        ends = self.until(reasoning.end, "thought")
        if reasoning.follows:
            follows = self.text(reasoning.follows)
            ends = f"{ends} {follows}" if shape.must_call else f"{ends} ({follows})?"
        if not shape.is_thinking:
            begin = self.at_once(reasoning.begin)
            ends = f"({begin} {ends})?"
        return f"{ends} SPACE?" if shape.must_call or shape.content else ends

    def _content(self, shape: Shape) -> str:
        return shape.content or "ANYTHING"

    def _answer(self, shape: Shape, calls: CallFormat) -> str:
        section = self.rule("section", " | ".join(self._sections(shape, calls)))
        if shape.must_call:
            return section
        if shape.content:
            return f"({section} | {shape.content})"
        if not calls.begin:
            # Such an answer is calls, or has none: text that begins like them would be read as one.
            words = self.rule("words", r"/[ \n]*[^ \n\[{](.|\n)*/")
            return f"({section} | {words})?"
        once = "?" if shape.is_single else "*"
        drops = shape.reasoning.drops if shape.reasoning is not None else ()
        if not drops:
            return f"({section}){once} {self.rule('rest', 'ANYTHING')}"
        words = self.rule("words", " | ".join(["SOME", *map(self.text, drops)]))
        return f"({words}* {section}){once} {words}*"

    def _sections(self, shape: Shape, calls: CallFormat) -> list[str]:
        """Return each way to write what stands from a mark that begins to the one that ends."""
        begin = self.text(calls.begin)
        is_amid = not shape.must_call and not shape.content
        if calls.begin and is_amid and not (shape.reasoning and shape.reasoning.drops):
            begin = self.until(calls.begin, "begin")
        end = "" if self.special.get(calls.end) in self.end_ids else self.text(calls.end)
        made: list[str] = []
        for writing in calls.writings:
            call = self.rule("call", " | ".join(self._call(writing, f) for f in shape.functions))
            many = call
            if writing.between is not None and not shape.is_single:
                many = f"{call} ({self.text(writing.between)} {call})*".replace("  ", " ")
            parts = [begin, self.text(writing.opens), many, self.text(writing.closes), end]
            one = " ".join(part for part in parts if part)
            if not is_amid and writing.apart is not None and not shape.is_single:
                whole = self.rule("marked", one)
                one = f"{whole} ({self.text(writing.apart)} {whole})*"
            made.append(one)
        return made

    def _call(self, writing: Writing, function: Function) -> str:
        is_python = writing.tagged is not None and writing.tagged.is_python
        _check_name(function.name, is_python=is_python)
        arguments = (
            json_lark(_object_schema(function.schema), is_strict=function.is_strict)
            if writing.tagged is None
            else self._parameters(writing.tagged, function)
        )
        head = self.text(writing.head + function.name + writing.named)
        return self.rule(
            "function", " ".join(p for p in (head, arguments, self.text(writing.tail)) if p)
        )

    # Parameters that stand by themselves

    def _parameters(self, tagged: Tagged, function: Function) -> str:
        """Return the parameters, in the schema's order; those that are not required may lack."""
        schema = _object_schema(function.schema)
        properties = fields_of(schema.get("properties"))
        required = set(cast("Sequence[str]", schema.get("required") or ()))
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        first = rest = ""
        for name in reversed(list(properties)):
            _check_name(name, is_python=tagged.is_python)
            value = properties[name]
            is_strict = function.is_strict
            written = self._parameter(tagged, name, value, definitions, is_strict=is_strict)
            between = self.text(tagged.between)
            after_first = f"{written} {rest}".strip()
            after_rest = f"{between} {written} {rest}".strip()
            is_needed = name in required
            first = self._either(after_first, None if is_needed else first)
            rest = self._either(after_rest, None if is_needed else rest)
        return first

    def _either(self, one: str, other: str | None) -> str:
        """Return a rule for ``one`` or ``other``; None: there is no other, "": nothing at all."""
        if other is None:
            return self.rule("parameters", one)
        return self.rule("parameters", f"{one} | {other}" if other else f"({one})?")

    def _parameter(
        self,
        tagged: Tagged,
        name: str,
        schema: Any,
        definitions: Mapping[str, Any],
        *,
        is_strict: bool,
    ) -> str:
        fields = fields_of(schema)
        is_text = fields.get("type") == "string" and not tagged.is_python
        named = tagged.named if is_text else tagged.named_json or tagged.named
        head = self.text(tagged.before + name + named)
        if is_text:
            value = self._text_value(tagged, fields)
        elif tagged.is_python and fields.get("type") == "boolean":
            value = f'("True" | "False") {self.text(tagged.after)}'
        else:
            whole = {**fields, **definitions}
            after = tagged.after if tagged.after_json is None else tagged.after_json
            value = f"{json_lark(whole, is_strict=is_strict)} {self.text(after)}".rstrip()
        return " ".join(part for part in (head, value, self.text(tagged.space)) if part)

    def _text_value(self, tagged: Tagged, schema: Mapping[str, Any]) -> str:
        """Return a value that stands as it is, and what ends it."""
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        after = self.text(tagged.after)
        if isinstance(choices, list):
            texts = [self.text(str(choice)) for choice in cast("list[Any]", choices)]
            return f"({' | '.join(texts)}) {after}"
        # Text has no special tokens, so that marks with one need not be forbidden.
        never = [mark for mark in tagged.never if not self.split.search(mark)]
        terms = [_pattern(schema), *(rf"~/(.|\n)*{escaped(mark)}(.|\n)*/" for mark in never)]
        return self.until(tagged.after, "value", self.rule("VALUE", " & ".join(terms)))


def _object_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of arguments: they are an object, whether it says so or not."""
    return {**schema, "type": "object"}


def _check_name(name: str, *, is_python: bool) -> None:
    if not (_PYTHON_NAME if is_python else _NAME).fullmatch(name):
        raise ValueError(f"the name {name[:64]!r} cannot be written in the model's format")


def _pattern(schema: Mapping[str, Any]) -> str:
    """Return the pattern of a text that stands as it is."""
    low, high = schema.get("minLength"), schema.get("maxLength")
    if isinstance(low, int) or isinstance(high, int):
        return rf"/(.|\n){{{low or 0},{high if isinstance(high, int) else ''}}}/"
    pattern = schema.get("pattern")
    if not isinstance(pattern, str):
        return r"/(.|\n)*/"
    before = "" if pattern.startswith("^") else r"(.|\n)*"
    after = "" if pattern.endswith("$") else r"(.|\n)*"
    inner = pattern.removeprefix("^").removesuffix("$").replace("/", r"\/")
    return f"/{before}({inner}){after}/"
