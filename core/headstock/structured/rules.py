"""The words of a Lark grammar: marks as the tokens that they are, text up to a mark, JSON.

Marks that are special tokens are matched as those tokens, so that text which looks like one opens
nothing. Everything else is text, in whichever tokens the model writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from headstock.text.parsers import NUMBER

WHITESPACE = r"[ \n\r\t]{0,32}"
"""Between JSON tokens: room for indentation, but no endless run of blanks."""
_HEADER = r"""%llguidance {}
ANYTHING: /(.|\n)*/
SOME: /(.|\n)+/
SPACE: /[ \n]{1,4}/
NUMBER: /[0-9]{1,3}/"""
_META = re.compile(r"[\\.+*?()|\[\]{}^$/&~\"#-]")


class Rules:
    """Collects the rules of one grammar.

    Args:
        special: Ids of special tokens by text.
        end_ids: Ids that end an answer.
    """

    def __init__(self, special: Mapping[str, int], end_ids: Sequence[int] = ()) -> None:
        self.special = {text: index for text, index in special.items() if text}
        self.end_ids = frozenset(end_ids)
        texts = sorted(self.special, key=len, reverse=True)
        self.split = re.compile("|".join(map(re.escape, [*texts, NUMBER])))
        self._rules: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def whole(self, start: str) -> str:
        """Return the grammar that begins with ``start``."""
        rules = [f"{name}: {rule}" for name, rule in self._rules.items()]
        return "\n".join([_HEADER, f"start: {start}", *rules])

    def until(self, mark: str, name: str, text: str = "ANYTHING") -> str:
        """Return ``text``, the name of a terminal, up to the ``mark`` that ends it, and that."""
        head, rest = self.cut(mark)
        if head in self.special:
            return f"{text}? {self.text(mark)}"
        if rest:  # the special token ends the text
            return f"{self.rule('UNTIL', f'{text} {quoted(head)}')} {self.text(rest)}"
        return self.rule(f"{name}[lazy]", f"{text} {quoted(head)}")

    def at_once(self, mark: str) -> str:
        """Return ``mark`` as something that no other text takes the place of."""
        head, rest = self.cut(mark)
        if head in self.special or rest:
            return self.text(mark)
        return self.rule("mark[lazy]", quoted(head))

    def cut(self, text: str) -> tuple[str, str]:
        """Return the first piece of ``text``, a special token or what stands before one."""
        found = self.split.search(text)
        if found is None:
            return text, ""
        end = found.end() if found.start() == 0 else found.start()
        return text[:end], text[end:]

    def text(self, text: str) -> str:
        """Return ``text`` as Lark: its special tokens as tokens."""
        made: list[str] = []
        while text:
            head, text = self.cut(text)
            if head == NUMBER:
                made.append("NUMBER")
            elif head in self.special:
                made.append(f"<[{self.special[head]}]>")
            else:
                made.append(quoted(head))
        return " ".join(made)

    def rule(self, name: str, body: str) -> str:
        """Add a rule; return its name. Equal bodies are one rule."""
        stem, bracket, options = name.partition("[")
        for known, rule in self._rules.items():
            if rule == body and known.partition("[")[2] == options and known.startswith(stem + "_"):
                return known.partition("[")[0]
        count = self._counts[stem] = self._counts.get(stem, 0) + 1
        self._rules[f"{stem}_{count}{bracket}{options}"] = body
        return f"{stem}_{count}"


def json_lark(schema: object, *, is_strict: bool = True) -> str:
    """Return the Lark of a JSON value of ``schema``."""
    options: dict[str, Any] = {"whitespace_pattern": WHITESPACE}
    if not is_strict:
        options["lenient"] = True
    fields = fields_of(schema)
    options |= fields_of(fields.get("x-guidance"))
    return f"%json {json.dumps({**fields, 'x-guidance': options})}"


def fields_of(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is an object; anything else has no fields."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def quoted(text: str) -> str:
    """Return ``text`` as a literal."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """Return ``text`` as part of a pattern."""
    return _META.sub(lambda found: "\\" + found.group(), text)
