"""Structural tags: answers described piece by piece, as a Lark grammar.

A description is a tree of formats, each an object with a ``type``. Text before a mark ends where
the mark comes first. What is written down in the older way, ``structures`` and ``triggers``, is the
format ``triggered_tags``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from headstock.errors import RequestError
from headstock.structured.provider import invalid
from headstock.structured.rules import Rules, escaped, fields_of, json_lark
from headstock.text.parsers import NUMBER

MAX_REPEAT = 1024
"""Largest count of ``repeat``."""
Format = Mapping[str, Any]
_OPEN = ("any_text", "regex")
"""Formats whose end the mark after them tells."""
_OPENERS = ("const_string", "tag")
"""Formats that begin with a mark."""


def tags_to_lark(tags: Format, special: Mapping[str, int]) -> str:
    """Return the grammar of a structural tag.

    Args:
        tags: With ``format``, or with ``structures`` and ``triggers``.
        special: Ids of special tokens by text: a mark that is one is matched as the token, so that
            text which looks like it opens nothing.

    Raises:
        RequestError: The description is not of that form.
    """
    wanted = tags["format"] if "format" in tags else _of_structures(tags)
    found = _Tags(special)
    return found.whole(found.lark(wanted, "format", is_last=True))


def _of_structures(tags: Format) -> Format:
    structures, triggers = tags.get("structures"), tags.get("triggers")
    if not isinstance(structures, list) or not structures or not isinstance(triggers, list):
        raise invalid("structural_tag", "it must have structures and triggers, both lists.")
    made: list[Format] = []
    for index, item in enumerate(cast("list[object]", structures)):
        fields = fields_of(item)
        if not isinstance(fields.get("schema"), dict) or not {"begin", "end"} <= fields.keys():
            raise invalid(
                "structural_tag",
                f"structures[{index}] must have begin and end, both texts, and schema, an object.",
            )
        content = {"type": "json_schema", "json_schema": fields["schema"]}
        made.append({**fields, "content": content})
    return {"type": "triggered_tags", "triggers": triggers, "tags": made}


class _Tags(Rules):
    """Collects the rules of a description."""

    def lark(self, given: object, where: str, after: str = "", *, is_last: bool = False) -> str:
        """Return the Lark of a format and of the mark ``after`` it.

        Args:
            given: The format.
            where: It stands, for errors.
            after: What follows it at once; "": nothing that is known.
            is_last: Whether nothing follows at all.
        """
        fields = fields_of(given)
        kind = fields.get("type")
        make = self._makers.get(kind) if isinstance(kind, str) else None
        if make is None:
            shown = repr(kind)[:64]
            raise _wrong(where, f"is of type {shown}; known are {', '.join(sorted(self._makers))}")
        return make(self, fields, where, after, is_last)

    def _const(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        return self.text(_text(fields, "value", where) + after)

    def _json(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        schema = fields.get("json_schema")
        if not isinstance(schema, dict) and schema is not True:
            raise _wrong(where, "has no json_schema, an object")
        return _joined(json_lark(cast("object", schema)), self.text(after))

    def _regex(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        pattern = _text(fields, "pattern", where).replace("/", r"\/")
        head, rest = self.cut(after)
        if head in self.special:
            head, rest = "", after
        # Pattern and mark are one terminal: the end is found by both together.
        return _joined(self.rule("PATTERN", f"/({pattern}){escaped(head)}/"), self.text(rest))

    def _any_text(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        never = [_str(item, where, "excludes") for item in _list(fields, "excludes", where)]
        text = "ANYTHING"
        if never:
            unwanted = (rf"~/(.|\n)*{escaped(mark)}(.|\n)*/" for mark in never)
            text = self.rule("TEXT", " & ".join([r"/(.|\n)*/", *unwanted]))
        if after:
            return self.until(after, "text", text)
        if not is_last:
            raise _wrong(where, "is any_text, and no text that is known ends it")
        return text

    def _tag(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        begin, rest = self._opened(fields, where, after)
        return _joined(self.text(begin), rest)

    def _opened(self, fields: Format, where: str, after: str) -> tuple[str, str]:
        """Return the mark that a tag or a constant begins with, and the Lark of what follows it."""
        if fields.get("type") == "const_string":
            return _text(fields, "value", where), self.text(after)
        begin, end = _text(fields, "begin", where), cast("object", fields.get("end", ""))
        ends: list[object] = [end]
        if isinstance(end, list) and end:
            ends = cast("list[object]", end)
        ways = [
            self.lark(fields.get("content"), f"{where}.content", _str(each, where, "end") + after)
            for each in ends
        ]
        return begin, ways[0] if len(ways) == 1 else _either(ways)

    def _sequence(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        elements = _list(fields, "elements", where, least=1)
        made: list[str] = []
        at = 0
        while at < len(elements):
            element, inside = fields_of(elements[at]), f"{where}.elements[{at}]"
            following = fields_of(elements[at + 1] if at + 1 < len(elements) else None)
            if element.get("type") in _OPEN and following.get("type") in _OPENERS:
                at += 1  # it ends where the next one begins: both are read together
                end = after if at + 1 == len(elements) else ""
                begin, rest = self._opened(following, f"{where}.elements[{at}]", end)
                made += [self.lark(element, inside, begin), rest]
            elif at + 1 == len(elements):
                made.append(self.lark(element, inside, after, is_last=is_last))
            else:
                made.append(self.lark(element, inside))
            at += 1
        return _joined(*made)

    def _or(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        return _either(
            [
                self.lark(element, f"{where}.elements[{place}]", after, is_last=is_last)
                for place, element in enumerate(_list(fields, "elements", where, least=1))
            ]
        )

    def _optional(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        content = self.lark(fields.get("content"), f"{where}.content", after, is_last=is_last)
        return _either([content, self.text(after)]) if after else f"({content})?"

    def _repeat(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        content = self.lark(fields.get("content"), f"{where}.content")
        counts = {"star": "*", "plus": "+"}.get(str(fields["type"]))
        if counts is None:
            least, most = fields.get("min"), fields.get("max")
            if not isinstance(least, int) or not isinstance(most, int):
                raise _wrong(where, "has no min and max, both numbers")
            if not 0 <= least <= most <= MAX_REPEAT:
                raise _wrong(where, f"repeats {least} to {most} times; 0 to {MAX_REPEAT} can be")
            counts = f"{{{least},{most}}}"
        return _joined(f"({content}){counts}", self.text(after))

    def _triggered(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        triggers = [_str(item, where, "triggers") for item in _list(fields, "triggers", where)]
        text = self._any_text({"excludes": fields.get("excludes")}, where, "", is_last=True)
        amid: list[str] = []
        first: list[str] = []
        for place, item in enumerate(_list(fields, "tags", where, least=1)):
            begin, rest = self._opened(fields_of(item), f"{where}.tags[{place}]", "")
            found = [trigger for trigger in triggers if trigger and begin.startswith(trigger)]
            if not found:
                raise _wrong(where, f"has no trigger that begins {begin[:64]!r}")
            trigger = max(found, key=len)
            behind = self.text(begin[len(trigger) :])
            amid.append(self.rule("tag", _joined(self.until(trigger, "begin", text), behind, rest)))
            first.append(self.rule("tag", _joined(self.text(begin), rest)))
        if not after and not is_last:
            raise _wrong(where, "ends with text, and nothing that is known ends that")
        tail = self.until(after, "text", text) if after else self.rule("rest", text)
        start = _either(first) if fields.get("at_least_one") is True else ""
        if fields.get("stop_after_first") is True:
            end = self.text(after)
            return _joined(start, end) if start else _either([_joined(_either(amid), end), tail])
        return _joined(start, f"{_either(amid)}*", tail)

    def _separated(self, fields: Format, where: str, after: str, is_last: bool) -> str:
        tags = [
            self.lark(item, f"{where}.tags[{place}]")
            for place, item in enumerate(_list(fields, "tags", where, least=1))
        ]
        one = self.rule("tag", " | ".join(tags))
        between = self.text(_text(fields, "separator", where))
        is_single = fields.get("stop_after_first") is True
        many = one if is_single else _joined(one, f"({_joined(between, one)})*")
        is_needed = fields.get("at_least_one") is True
        return _joined(many if is_needed else f"({many})?", self.text(after))

    _makers: ClassVar[Mapping[str, Callable[..., str]]] = {
        "const_string": _const,
        "json_schema": _json,
        "regex": _regex,
        "any_text": _any_text,
        "tag": _tag,
        "sequence": _sequence,
        "or": _or,
        "optional": _optional,
        "plus": _repeat,
        "star": _repeat,
        "repeat": _repeat,
        "triggered_tags": _triggered,
        "tags_with_separator": _separated,
    }


def _either(ways: Sequence[str]) -> str:
    return f"({' | '.join(ways)})"


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _list(fields: Format, name: str, where: str, *, least: int = 0) -> list[object]:
    value = fields.get(name)
    if value is None and not least:
        return []
    if not isinstance(value, list) or len(cast("list[object]", value)) < least:
        raise _wrong(where, f"has no {name}, a list")
    return cast("list[object]", value)


def _text(fields: Format, name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise _wrong(where, f"has no {name}, a text")
    return _str(value, where, name)


def _str(value: object, where: str, name: str) -> str:
    if not isinstance(value, str) or NUMBER in value:
        raise _wrong(where, f"has something else than text as {name}")
    return value


def _wrong(where: str, what: str) -> RequestError:
    return invalid("structural_tag", f"{where} {what}.")
