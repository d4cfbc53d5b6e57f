"""Grammars of answers with calls: what they allow is read as calls, whatever the format."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from headstock.requests import Grammar
from headstock.structured.calls import Function, Shape, shape_to_lark
from headstock.structured.guidance import GuidanceProvider
from headstock.structured.provider import Matcher, Vocabulary
from headstock.structured.rules import json_lark
from headstock.text.parsers import (
    CALL_FORMATS,
    NUMBER,
    REASONING_FORMATS,
    CallFormat,
    Part,
    PartReader,
    ReasoningFormat,
    Writing,
)
from headstock.text.parsers.bound import can_stream
from tests.structured.vocabularies import allowed

EOS = 256
MARKS = [
    "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|start|>", "<|call|>",
    "｜DSML｜", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
    "<|tool_call_argument_begin|>", "<|tool_call|>", "[TOOL_CALLS]", "[ARGS]",
]  # fmt: skip
"""What the families' tokenizers have as special tokens."""
IDS = {mark: EOS + 1 + index for index, mark in enumerate(MARKS)}
TOKENS = [bytes([byte]) for byte in range(256)] + [b"<eos>", *(mark.encode() for mark in MARKS)]
CALL_END = IDS["<|call|>"]
BY_NAME = {known.name: known for known in CALL_FORMATS}
THINK = {known.name: known for known in REASONING_FORMATS}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "is_long": {"type": "boolean"},
        "at": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = [
    Function(name="get_weather", schema=WEATHER, is_strict=True),
    Function(name="now", schema=NOTHING, is_strict=True),
]
TOOLS = {function.name: function.schema for function in FUNCTIONS}
CALLS = [
    ("get_weather", {"city": "Rome", "unit": "C", "days": 3, "is_long": True, "at": [True]}),
    ("now", {}),
]


class Table:
    """A vocabulary of bytes, whose marks are special tokens or text."""

    def __init__(self, *, is_special: bool) -> None:
        special = [EOS, *(IDS.values() if is_special else ())]
        tokens = TOKENS if is_special else [*TOKENS[: EOS + 1], *([b""] * len(MARKS))]
        self.eos_ids = [EOS, CALL_END] if is_special else [EOS]
        self.special = IDS if is_special else {}
        self.provider = GuidanceProvider(Vocabulary(tokens, special, self.eos_ids))

    def matcher(self, shape: Shape) -> Matcher:
        lark = shape_to_lark(shape, self.special, self.eos_ids)
        return self.provider.compile(
            self.provider.translate(Grammar("lark", lark, "tools"))
        ).matcher()

    def ids(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            mark = next((mark for mark in self.special if text.startswith(mark)), None)
            ids += [self.special[mark]] if mark else text[0].encode()
            text = text[len(mark) if mark else 1 :]
        return ids

    def takes(self, shape: Shape, text: str) -> bool:
        """Whether an answer may be ``text``."""
        ids, matcher = self.ids(text), self.matcher(shape)
        return matcher.advance(ids) == len(ids) and matcher.can_end

    def stops_at(self, shape: Shape, text: str) -> str:
        """Return what of ``text`` is refused."""
        ids = self.ids(text)
        return b"".join(TOKENS[i] for i in ids[self.matcher(shape).advance(ids) :]).decode()

    def walk(self, shape: Shape, seed: int) -> str:
        """Return a random answer that the grammar allows."""
        source, matcher, ids = random.Random(seed), self.matcher(shape), list[int]()
        for _ in range(4000):
            may = [i for i in allowed(self.provider.masks([matcher])[0]) if i not in self.eos_ids]
            if not may or (matcher.can_end and source.random() < 0.3):
                break
            letters = [i for i in may if i < 128]
            ids.append(source.choice(letters if letters and source.random() < 0.9 else may))
            assert matcher.advance(ids[-1:]) == 1
        assert matcher.can_end, "the walk does not end"
        return b"".join(TOKENS[i] for i in ids).decode()


@pytest.fixture(scope="module", params=[False, True], ids=["text", "tokens"])
def table(request: pytest.FixtureRequest) -> Table:
    return Table(is_special=request.param)


@pytest.fixture
def with_its_tokens(name: str, table: Table) -> None:
    """Leave out harmony without its special tokens: its words are told by them alone."""
    if name == "harmony" and not table.special:
        pytest.skip("harmony's marks are always special tokens")


def rendered(known: CallFormat, writing: Writing, calls: Sequence[tuple[str, Any]]) -> str:
    """Return calls as ``writing`` has them."""
    made: list[str] = []
    for number, (name, arguments) in enumerate(calls):
        text = writing.head + name + writing.named.replace(NUMBER, str(number))
        if writing.tagged is None:
            text += json.dumps(arguments)
        else:
            tagged = writing.tagged
            values = []
            for key, value in arguments.items():
                is_text = isinstance(value, str) and not tagged.is_python
                shown = value if is_text else json.dumps(value)
                if tagged.is_python and isinstance(value, bool):
                    shown = str(value)
                named = tagged.named if is_text else tagged.named_json or tagged.named
                after = tagged.after
                if not is_text and tagged.after_json is not None:
                    after = tagged.after_json
                values.append(tagged.before + key + named + shown + after + tagged.space)
            text += tagged.between.join(values)
        made.append(text + writing.tail)
    if writing.between is not None:
        made = [writing.between.join(made)]
    whole = [known.begin + writing.opens + call + writing.closes + known.end for call in made]
    return (writing.apart or "").join(whole)


def read(
    text: str, known: CallFormat, reasoning: ReasoningFormat | None = None, **more: Any
) -> tuple[str, list[tuple[str, Any]]]:
    reader = PartReader(reasoning, known, TOOLS, **more)
    parts = [*reader.push(text), *reader.flush()]
    words = "".join(part.text for part in parts if part.kind == "text")
    calls = [(p.call.name, json.loads(p.call.arguments)) for p in parts if p.call is not None]
    return words, calls


def is_right(name: str, arguments: Any) -> bool:
    if name == "now":
        return arguments == {}
    properties = WEATHER["properties"]
    kinds = {"string": str, "integer": int, "boolean": bool, "array": list}
    return (
        {"city", "days"} <= arguments.keys() <= properties.keys()
        and all(type(v) is kinds[properties[k]["type"]] for k, v in arguments.items())
        and len(arguments["city"]) <= 8  # an end of line around it does not count
        and 0 <= arguments["days"] <= 99
        and arguments.get("unit", "C") in ("C", "F")
    )


def shape(name: str, **more: Any) -> Shape:
    return Shape(calls=BY_NAME[name], functions=FUNCTIONS, **more)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_what_the_format_describes_is_allowed_and_read_so(name: str, table: Table) -> None:
    known = BY_NAME[name]
    for writing in known.writings:
        several = writing.between is not None or writing.apart is not None
        calls = CALLS if several else CALLS[:1]
        text = rendered(known, writing, calls)
        assert read(text, known) == ("", calls)
        asked = text.removesuffix("<|call|>") if table.special else text  # it ends the answer
        assert table.takes(shape(name, must_call=True), asked)
        assert table.takes(shape(name), asked)
        one = rendered(known, writing, CALLS[:1])
        one = one.removesuffix("<|call|>") if table.special else one
        assert table.takes(shape(name, must_call=True, is_single=True), one)
        if several:
            assert not table.takes(shape(name, must_call=True, is_single=True), asked)


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("is_single", [False, True])
def test_whatever_is_drawn_is_read_as_calls_that_obey_their_schemas(
    name: str, table: Table, is_single: bool
) -> None:
    for seed in range(6):
        text = table.walk(shape(name, must_call=True, is_single=is_single), seed)
        words, calls = read(text, BY_NAME[name])
        assert words == "", text
        assert calls, text
        assert all(is_right(*call) for call in calls), text
        assert not is_single or len(calls) == 1


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.usefixtures("with_its_tokens")
def test_words_come_first_only_where_no_call_is_required(name: str, table: Table) -> None:
    free, bound = shape(name), shape(name, must_call=True)
    assert table.takes(free, "Hello { there.")
    assert table.takes(free, "")
    assert table.stops_at(bound, "Hello.") == "Hello."
    assert not table.takes(bound, "")
    known = BY_NAME[name]
    if known.begin:
        call = rendered(known, known.writings[0], CALLS[:1])
        wrong = call.replace("get_weather", "get_money")
        assert table.takes(free, "Well:\n" + call.removesuffix("<|call|>"))
        assert table.stops_at(free, "Well:\n" + wrong).startswith("money")


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("thinks", sorted(THINK))
@pytest.mark.usefixtures("with_its_tokens")
def test_thoughts_come_before_and_may_say_anything(name: str, thinks: str, table: Table) -> None:
    known, reasoning = BY_NAME[name], THINK[thinks]
    call = rendered(known, known.writings[0], CALLS[:1]).removesuffix("<|call|>")
    quoted = "" if any(mark in call[:9] for mark in table.special) else call[:9]
    thought = f"I could {quoted} or not.{reasoning.end}{reasoning.follows}"
    for must_call in (False, True):
        begun = shape(name, must_call=must_call, reasoning=reasoning, is_thinking=True)
        fresh = shape(name, must_call=must_call, reasoning=reasoning)
        assert table.takes(begun, thought + call)
        assert table.takes(fresh, reasoning.begin + thought + call)
        assert table.takes(fresh, call)
        assert not table.takes(begun, call)
    answer = read(thought + call, known, reasoning, is_thinking=True)
    assert answer == ("", CALLS[:1])


def test_words_may_have_to_obey_a_schema_and_calls_another(table: Table) -> None:
    asked = shape("hermes", content=json_lark({"type": "integer"}))
    assert table.takes(asked, "12")
    assert table.takes(asked, rendered(BY_NAME["hermes"], BY_NAME["hermes"].writings[0], CALLS))
    assert not table.takes(asked, "twelve")
    thoughtful = Shape(
        calls=None,
        content=json_lark({"type": "integer"}),
        reasoning=THINK["think"],
        is_thinking=True,
    )
    assert table.takes(thoughtful, "Let me count.</think>\n\n12")
    assert not table.takes(thoughtful, "12")


def test_what_looks_like_a_special_token_opens_no_call() -> None:
    table = Table(is_special=True)
    free = shape("kimi_k2")
    text = rendered(BY_NAME["kimi_k2"], BY_NAME["kimi_k2"].writings[0], CALLS[:1])
    matcher = table.matcher(free)
    assert matcher.advance(list(text.encode())) == len(text.encode())  # letters, not tokens
    assert table.stops_at(free, text.replace("weather", "money")).startswith("money")


@pytest.mark.parametrize("bad", ["a b", 'a"b', "", "x" * 200])
def test_a_name_that_cannot_be_written_is_refused(bad: str) -> None:
    functions = [Function(name=bad, schema=NOTHING)]
    with pytest.raises(ValueError, match="cannot be written"):
        shape_to_lark(Shape(calls=BY_NAME["hermes"], functions=functions), {}, [])


def test_a_schema_that_is_not_strict_may_ask_what_cannot_be_enforced() -> None:
    table = Table(is_special=False)
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for is_strict in (False, True):
        functions = [Function(name="f", schema=odd, is_strict=is_strict)]
        wanted = Shape(calls=BY_NAME["hermes"], functions=functions, must_call=True)
        if is_strict:
            with pytest.raises(Exception, match="uniqueItems"):
                table.matcher(wanted)
        else:
            table.matcher(wanted)


STREAMED = sorted(name for name, known in BY_NAME.items() if can_stream(known))


def parts_of(text: str, known: CallFormat, cuts: Sequence[int], **more: Any) -> list[Part]:
    reader = PartReader(None, known, TOOLS, is_bound=True, **more)
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    return [part for piece in pieces for part in reader.push(piece)] + reader.flush()


def joined(parts: Sequence[Part]) -> tuple[str, list[list[Any]]]:
    """Return words, and name, arguments and whether they are whole of each call."""
    calls: list[list[Any]] = []
    for part in parts:
        if part.call is not None:
            calls.append([part.call.name, part.call.arguments, not part.is_open])
        elif part.kind == "arguments":
            calls[-1][1] += part.text
            calls[-1][2] = part.is_last
    return "".join(part.text for part in parts if part.kind == "text"), calls


def test_formats_whose_arguments_are_json_are_streamed() -> None:
    tagged = {
        "deepseek_v32", "deepseek_v4", "function_gemma", "gemma4", "glm45", "minimax_m2",
        "pythonic", "qwen3_xml",
    }  # fmt: skip
    assert set(STREAMED) == BY_NAME.keys() - tagged


@pytest.mark.parametrize("name", STREAMED)
def test_arguments_come_as_they_are_written_and_any_split_joins_to_the_same(name: str) -> None:
    known, source = BY_NAME[name], random.Random(name)
    odd = {"city": '}{"\\\\\\"] ', "days": 3, "at": [{"a": [1, {"b": "]}"}]}]}
    for writing in known.writings:
        several = writing.between is not None or writing.apart is not None
        calls = [("get_weather", odd), ("now", {})] if several else [("get_weather", odd)]
        text = rendered(known, writing, calls)
        wanted = [[n, json.dumps(arguments), True] for n, arguments in calls]
        whole = joined(parts_of(text, known, []))
        assert whole == ("", wanted)
        for _ in range(30):
            cuts = [source.randrange(len(text) + 1) for _ in range(source.randrange(9))]
            assert joined(parts_of(text, known, cuts)) == whole
        each = parts_of(text, known, range(len(text)))
        assert joined(each) == whole
        assert sum(part.kind == "arguments" for part in each) > 20
        for end in range(len(text)):  # cut short by a limit: what came is a beginning
            _, some = joined(parts_of(text[:end], known, range(end)))
            for got, full in zip(some, wanted, strict=False):
                assert got[0] == full[0]
                assert full[1].startswith(got[1])
                assert got[2] == (got[1] == full[1])


@pytest.mark.parametrize("name", STREAMED)
def test_whatever_is_drawn_streams_as_it_is_read_whole(name: str, table: Table) -> None:
    for seed in range(4):
        text = table.walk(shape(name, must_call=True), seed)
        _, calls = read(text, BY_NAME[name])
        _, told = joined(parts_of(text, BY_NAME[name], range(len(text))))
        assert [(n, json.loads(arguments)) for n, arguments, _ in told] == calls
        assert all(is_whole for *_, is_whole in told)


def test_words_between_and_after_bound_calls_are_told() -> None:
    known = BY_NAME["hermes"]
    call = rendered(known, known.writings[0], CALLS[:1])
    words, calls = joined(parts_of(f"First. {call} Then {call} done.", known, [3, 9, 30]))
    assert words == "First.Thendone."  # white space around a mark belongs to it
    assert [n for n, *_ in calls] == ["get_weather", "get_weather"]
    _, one = joined(parts_of(f"{call}\n{call}", known, range(40), max_calls=1))
    assert [(n, is_whole) for n, _, is_whole in one] == [("get_weather", True)]
