"""Structural tags: each format allows what it describes and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headstock.errors import RequestError
from headstock.requests import Grammar
from headstock.structured.provider import Matcher
from tests.structured.test_calls import Table

NUMBER = {"type": "json_schema", "json_schema": {"type": "integer"}}
TEXT = {"type": "any_text"}


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def tag(begin: str, content: Any, end: str | list[str]) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def sequence(*elements: Any) -> dict[str, Any]:
    return {"type": "sequence", "elements": list(elements)}


CALL_A, CALL_B = tag("<f=a>", NUMBER, "</f>"), tag("<f=b>", const("x"), "</f>")
TAGGED: dict[str, Any] = {"type": "triggered_tags", "triggers": ["<f="], "tags": [CALL_A, CALL_B]}
APART: dict[str, Any] = {"type": "tags_with_separator", "separator": ", ", "tags": [CALL_A, CALL_B]}
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "const_string": (const("a/b"), ["a/b"], ["", "a", "a/bc"]),
    "json_schema": (NUMBER, ["12", "-3"], ["", "x", "1.5"]),
    "regex": ({"type": "regex", "pattern": "a+/?"}, ["a", "aa/"], ["", "b", "a//"]),
    "any_text": (TEXT, ["", "so\nwhat?"], []),
    "excludes": ({**TEXT, "excludes": ["no", "a+b"]}, ["yes", "a b"], ["no", "oh no!", "a+b"]),
    "tag": (tag("<t>", TEXT, "</t>"), ["<t></t>", "<t>a < b</t>"], ["<t>a", "<t>a</t>b", "a"]),
    "tag ends": (tag("(", TEXT, [")", "]"]), ["(a)", "(b]"], ["(a", "(a}"]),
    "regex in a tag": (
        tag("(", {"type": "regex", "pattern": "[a-z)]+"}, ")"), ["(a)", "(a))"], ["()", "(a"],
    ),
    "sequence": (
        sequence(const("<think>"), TEXT, const("</think>"), NUMBER),
        ["<think>hm</think>7", "<think></think>7"],
        ["<think>hm", "<think>hm</think>", "<think>hm</think>x", "7"],
    ),
    "text before a tag": (
        sequence(TEXT, CALL_A, const("."), NUMBER), ["so <f=a>1</f>.2"], ["so", "so <f=a>1</f>2"],
    ),
    "or": ({"type": "or", "elements": [NUMBER, const("none")]}, ["4", "none"], ["", "no", "4none"]),
    "or in a tag": (
        tag("(", {"type": "or", "elements": [TEXT, NUMBER]}, ")"), ["(4)", "(a b)"], ["(4"],
    ),
    "optional": (
        sequence({"type": "optional", "content": const("a")}, const("b")),
        ["ab", "b"], ["a", "aab"],
    ),
    "optional in a tag": (
        tag("(", {"type": "optional", "content": const("a")}, ")"), ["(a)", "()"], ["(", "(aa)"],
    ),
    "star": ({"type": "star", "content": const("ab")}, ["", "ab", "abab"], ["a", "aba"]),
    "plus": ({"type": "plus", "content": const("ab")}, ["ab", "abab"], ["", "a"]),
    "repeat": (
        {"type": "repeat", "content": CALL_B, "min": 1, "max": 2},
        ["<f=b>x</f>", "<f=b>x</f><f=b>x</f>"],
        ["", "<f=b>x</f>" * 3],
    ),
    "triggered_tags": (
        TAGGED,
        ["", "1 < 2", "so <f=a>1</f> and <f=b>x</f>!"],
        ["<f=c>", "<f=a>x</f>", "so <f=b>1</f>"],
    ),
    "at least one": (
        {**TAGGED, "at_least_one": True}, ["<f=a>1</f>", "<f=b>x</f> and <f=a>2</f>."],
        ["", "so <f=a>1</f>"],
    ),
    "stop after first": (
        {**TAGGED, "stop_after_first": True}, ["", "so <f=a>1</f>"], ["<f=a>1</f>.", "<f=a>1"],
    ),
    "one and no more": (
        {**TAGGED, "stop_after_first": True, "at_least_one": True},
        ["<f=a>1</f>"], ["", "so", "<f=a>1</f>.", "<f=a>1</f><f=a>1</f>"],
    ),
    "what text excludes": (
        {**TAGGED, "excludes": ["<g>"]}, ["so <f=a>1</f>"], ["<g>", "<f=a>1</f><g>"],
    ),
    "triggered in a tag": (
        tag("[", TAGGED, "]"), ["[so <f=a>1</f>!]", "[]"], ["[<f=a>1</f>", "[<f=a>]"],
    ),
    "tags_with_separator": (
        APART, ["", "<f=a>1</f>", "<f=a>1</f>, <f=b>x</f>"], ["<f=a>1</f>, ", "so", "<f=a>1</f>;"],
    ),
    "apart, one at least": (
        {**APART, "at_least_one": True}, ["<f=a>1</f>"], [""],
    ),
    "apart, one at most": (
        {**APART, "stop_after_first": True}, ["", "<f=a>1</f>"], ["<f=a>1</f>, <f=a>1</f>"],
    ),
}  # fmt: skip


def matcher(table: Table, wanted: Any) -> Matcher:
    text = json.dumps({"type": "structural_tag", "format": wanted})
    grammar = table.provider.translate(Grammar("structural_tag", text))
    return table.provider.compile(grammar).matcher()


def takes(table: Table, wanted: Any, ids: list[int]) -> bool:
    found = matcher(table, wanted)
    return found.advance(ids) == len(ids) and found.can_end


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_special", [False, True])
def test_a_format_allows_what_it_describes_and_nothing_else(name: str, is_special: bool) -> None:
    table = Table(is_special=is_special)
    wanted, right, wrong = CASES[name]
    for text in right:
        assert takes(table, wanted, table.ids(text)), text
    for text in wrong:
        assert not takes(table, wanted, table.ids(text)), text


def test_a_mark_that_is_a_special_token_is_matched_as_the_token() -> None:
    table = Table(is_special=True)
    begin, end = "<|tool_call_begin|>", "<|tool_call_end|>"
    wanted = {"type": "triggered_tags", "triggers": [begin], "tags": [tag(begin, NUMBER, end)]}
    assert takes(table, wanted, table.ids(f"so {begin}12{end} then"))
    assert takes(table, wanted, list(f"{begin}no number".encode()))  # letters, not tokens
    assert not takes(table, wanted, table.ids(f"{begin}no"))
    thought = sequence(TEXT, const(end), NUMBER)
    assert takes(table, thought, [*b"a " + end.encode(), *table.ids(f"{end}3")])
    assert not takes(table, thought, [*b"a " + end.encode(), *b"3"])


def test_the_older_way_to_write_tags_is_the_same_format() -> None:
    table = Table(is_special=False)
    older = {
        "triggers": ["<f="],
        "structures": [{"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}],
    }
    translate = table.provider.translate
    newer = {"format": {**TAGGED, "tags": [CALL_A]}}
    assert translate(Grammar("structural_tag", json.dumps(older))) == translate(
        Grammar("structural_tag", json.dumps(newer))
    )


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, "format is of type None"),
        ({"type": "grammar"}, "known are any_text, const_string"),
        (const(""), "has no value"),
        (const("\0"), "something else than text"),
        ({"type": "json_schema"}, "has no json_schema"),
        (sequence(), "has no elements"),
        (sequence(TEXT, NUMBER), "format.elements[0] is any_text, and no text that is known ends"),
        ({"type": "star", "content": TEXT}, "format.content is any_text"),
        ({"type": "repeat", "content": NUMBER, "min": 2, "max": 1}, "repeats 2 to 1"),
        ({"type": "repeat", "content": NUMBER, "min": 0, "max": 10**9}, "repeats 0 to"),
        ({"type": "repeat", "content": NUMBER}, "has no min and max"),
        ({**TAGGED, "triggers": ["<g="]}, "no trigger that begins '<f=a>'"),
        ({**TAGGED, "triggers": [1]}, "something else than text as triggers"),
        (sequence(TAGGED, NUMBER), "format.elements[0] ends with text"),
        (tag("<t>", {"type": "sequence", "elements": [1]}, ">"), "format.content.elements[0] is"),
    ],
)
def test_what_is_no_format_is_refused_by_its_place(wanted: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        matcher(Table(is_special=False), wanted)
    assert caught.value.code == "invalid_grammar"
    assert words in caught.value.problem
