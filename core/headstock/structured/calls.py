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
from headstock.text.parsers import NUMBER, CallFormat, ReasoningFormat, Tagged, Writing

WHITESPACE = r"[ \n\r\t]{0,32}"
"""Between JSON tokens: room for indentation, but no endless run of blanks."""
_HEADER = r"""%llguidance {}
ANYTHING: /(.|\n)*/
SOME: /(.|\n)+/
SPACE: /[ \n]{1,4}/
NUMBER: /[0-9]{1,3}/"""
_META = re.compile(r"[\\.+*?()|\[\]{}^$/&~\"#-]")
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
            return f"({' | '.join(map(_quoted, json.loads(wanted.text)))})"
        case _:
            return None


def json_lark(schema: object, *, is_strict: bool = True) -> str:
    """Return the Lark of a JSON value of ``schema``."""
    options: dict[str, Any] = {"whitespace_pattern": WHITESPACE}
    if not is_strict:
        options["lenient"] = True
    fields = _fields(schema)
    options |= _fields(fields.get("x-guidance"))
    return f"%json {json.dumps({**fields, 'x-guidance': options})}"


class _Lark:
    """Collects rules.

    Args:
        special: Ids of special tokens by text.
        end_ids: Ids that end an answer.
    """

    def __init__(self, special: Mapping[str, int], end_ids: Sequence[int]) -> None:
        self._special = {text: index for text, index in special.items() if text}
        self._end_ids = frozenset(end_ids)
        texts = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, [*texts, NUMBER])))
        self._rules: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def grammar(self, shape: Shape) -> str:
        body = self._content(shape) if shape.calls is None else self._answer(shape, shape.calls)
        start = f"{self._thoughts(shape)} {body}".strip()
        rules = [f"{name}: {rule}" for name, rule in self._rules.items()]
        return "\n".join([_HEADER, f"start: {start}", *rules])

    # The answer

    def _thoughts(self, shape: Shape) -> str:
        """Return what comes before the answer's words and calls."""
        reasoning = shape.reasoning
        if reasoning is None:
            return "SPACE?" if shape.must_call else ""
        ends = self._until(reasoning.end, "thought")
        if reasoning.follows:
            follows = self._text(reasoning.follows)
            ends = f"{ends} {follows}" if shape.must_call else f"{ends} ({follows})?"
        if not shape.is_thinking:
            begin = self._at_once(reasoning.begin)
            ends = f"({begin} {ends})?"
        return f"{ends} SPACE?" if shape.must_call or shape.content else ends

    def _content(self, shape: Shape) -> str:
        return shape.content or "ANYTHING"

    def _answer(self, shape: Shape, calls: CallFormat) -> str:
        section = self._rule("section", " | ".join(self._sections(shape, calls)))
        if shape.must_call:
            return section
        if shape.content:
            return f"({section} | {shape.content})"
        if not calls.begin:
            # Such an answer is calls, or has none: text that begins like them would be read as one.
            words = self._rule("words", r"/[ \n]*[^ \n\[{](.|\n)*/")
            return f"({section} | {words})?"
        once = "?" if shape.is_single else "*"
        drops = shape.reasoning.drops if shape.reasoning is not None else ()
        if not drops:
            return f"({section}){once} {self._rule('rest', 'ANYTHING')}"
        words = self._rule("words", " | ".join(["SOME", *map(self._text, drops)]))
        return f"({words}* {section}){once} {words}*"

    def _sections(self, shape: Shape, calls: CallFormat) -> list[str]:
        """Return each way to write what stands from a mark that begins to the one that ends."""
        begin = self._text(calls.begin)
        is_amid = not shape.must_call and not shape.content
        if calls.begin and is_amid and not (shape.reasoning and shape.reasoning.drops):
            begin = self._until(calls.begin, "begin")
        end = "" if self._special.get(calls.end) in self._end_ids else self._text(calls.end)
        made: list[str] = []
        for writing in calls.writings:
            call = self._rule("call", " | ".join(self._call(writing, f) for f in shape.functions))
            many = call
            if writing.between is not None and not shape.is_single:
                many = f"{call} ({self._text(writing.between)} {call})*".replace("  ", " ")
            parts = [begin, self._text(writing.opens), many, self._text(writing.closes), end]
            one = " ".join(part for part in parts if part)
            if not is_amid and writing.apart is not None and not shape.is_single:
                whole = self._rule("marked", one)
                one = f"{whole} ({self._text(writing.apart)} {whole})*"
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
        head = self._text(writing.head + function.name + writing.named)
        return self._rule(
            "function", " ".join(p for p in (head, arguments, self._text(writing.tail)) if p)
        )

    # Parameters that stand by themselves

    def _parameters(self, tagged: Tagged, function: Function) -> str:
        """Return the parameters, in the schema's order; those that are not required may lack."""
        schema = _object_schema(function.schema)
        properties = _fields(schema.get("properties"))
        required = set(cast("Sequence[str]", schema.get("required") or ()))
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        first = rest = ""
        for name in reversed(list(properties)):
            _check_name(name, is_python=tagged.is_python)
            value = properties[name]
            is_strict = function.is_strict
            written = self._parameter(tagged, name, value, definitions, is_strict=is_strict)
            between = self._text(tagged.between)
            after_first = f"{written} {rest}".strip()
            after_rest = f"{between} {written} {rest}".strip()
            is_needed = name in required
            first = self._either(after_first, None if is_needed else first)
            rest = self._either(after_rest, None if is_needed else rest)
        return first

    def _either(self, one: str, other: str | None) -> str:
        """Return a rule for ``one`` or ``other``; None: there is no other, "": nothing at all."""
        if other is None:
            return self._rule("parameters", one)
        return self._rule("parameters", f"{one} | {other}" if other else f"({one})?")

    def _parameter(
        self,
        tagged: Tagged,
        name: str,
        schema: Any,
        definitions: Mapping[str, Any],
        *,
        is_strict: bool,
    ) -> str:
        fields = _fields(schema)
        is_text = fields.get("type") == "string" and not tagged.is_python
        named = tagged.named if is_text else tagged.named_json or tagged.named
        head = self._text(tagged.before + name + named)
        if is_text:
            value = self._text_value(tagged, fields)
        elif tagged.is_python and fields.get("type") == "boolean":
            value = f'("True" | "False") {self._text(tagged.after)}'
        else:
            whole = {**fields, **definitions}
            after = tagged.after if tagged.after_json is None else tagged.after_json
            value = f"{json_lark(whole, is_strict=is_strict)} {self._text(after)}".rstrip()
        return " ".join(part for part in (head, value, self._text(tagged.space)) if part)

    def _text_value(self, tagged: Tagged, schema: Mapping[str, Any]) -> str:
        """Return a value that stands as it is, and what ends it."""
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        after = self._text(tagged.after)
        if isinstance(choices, list):
            texts = [self._text(str(choice)) for choice in cast("list[Any]", choices)]
            return f"({' | '.join(texts)}) {after}"
        # Text has no special tokens, so that marks with one need not be forbidden.
        never = [mark for mark in tagged.never if not self._split.search(mark)]
        terms = [_pattern(schema), *(rf"~/(.|\n)*{_escaped(mark)}(.|\n)*/" for mark in never)]
        return self._until(tagged.after, "value", self._rule("VALUE", " & ".join(terms)))

    # Words of the grammar

    def _until(self, mark: str, name: str, text: str = "ANYTHING") -> str:
        """Return ``text``, the name of a terminal, up to the ``mark`` that ends it, and that."""
        head, rest = self._cut(mark)
        if head in self._special:
            return f"{text}? {self._text(mark)}"
        if rest:  # the special token ends the text
            return f"{self._rule('UNTIL', f'{text} {_quoted(head)}')} {self._text(rest)}"
        return self._rule(f"{name}[lazy]", f"{text} {_quoted(head)}")

    def _at_once(self, mark: str) -> str:
        """Return ``mark`` as something that no other text takes the place of."""
        head, rest = self._cut(mark)
        if head in self._special or rest:
            return self._text(mark)
        return self._rule("mark[lazy]", _quoted(head))

    def _cut(self, text: str) -> tuple[str, str]:
        """Return the first piece of ``text``, a special token or what stands before one."""
        found = self._split.search(text)
        if found is None:
            return text, ""
        end = found.end() if found.start() == 0 else found.start()
        return text[:end], text[end:]

    def _text(self, text: str) -> str:
        """Return ``text`` as Lark: its special tokens as tokens."""
        made: list[str] = []
        while text:
            head, text = self._cut(text)
            if head == NUMBER:
                made.append("NUMBER")
            elif head in self._special:
                made.append(f"<[{self._special[head]}]>")
            else:
                made.append(_quoted(head))
        return " ".join(made)

    def _rule(self, name: str, body: str) -> str:
        """Add a rule; return its name. Equal bodies are one rule."""
        stem, bracket, options = name.partition("[")
        for known, rule in self._rules.items():
            if rule == body and known.partition("[")[2] == options and known.startswith(stem + "_"):
                return known.partition("[")[0]
        count = self._counts[stem] = self._counts.get(stem, 0) + 1
        self._rules[f"{stem}_{count}{bracket}{options}"] = body
        return f"{stem}_{count}"


def _fields(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is an object; anything else has no fields."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


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


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _META.sub(lambda found: "\\" + found.group(), text)
