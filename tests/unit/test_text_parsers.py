"""Answers in parts: every format, and any split of its text."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstock.text.parsers import CALL_FORMATS, REASONING_FORMATS, PartReader, detect
from headstock.text.parsers.formats import ALIASES, find_format

TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    },
    "now": {"type": "object", "properties": {}},
}
ARGUMENTS = {"city": 'São </Paulo> {"x"}', "days": 3}
JSON = json.dumps({"name": "get_weather", "arguments": ARGUMENTS}, ensure_ascii=False)
NOW = json.dumps({"name": "now", "arguments": {}})
OBJECT = json.dumps(ARGUMENTS, ensure_ascii=False)
CITY = ARGUMENTS["city"]
CALLS = [("get_weather", ARGUMENTS), ("now", {})]
WRITTEN = {
    "hermes": f"<tool_call>\n{JSON}\n</tool_call>\n<tool_call>\n{NOW}\n</tool_call>",
    "qwen3_xml": (
        f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{CITY}\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>"
    ),
    "glm45": (
        f"<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{CITY}</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n"
        "<tool_call>now\n</tool_call>"
    ),
    "minimax_m2": (
        f'<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">{CITY}'
        '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n<invoke name="now">\n'
        "</invoke>\n</minimax:tool_call>"
    ),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        f"{OBJECT}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>now<｜tool▁sep｜>{{}}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v32": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        f'<｜DSML｜parameter name="city" string="true">{CITY}</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>"
    ),
    "deepseek_v4": (
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
        f'<｜DSML｜parameter name="city" string="true">{CITY}</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n'
        "</｜DSML｜tool_calls>"
    ),
    "nemotron": f"<TOOLCALL>[{JSON}, {NOW}]</TOOLCALL>",
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        f"<|tool_call_argument_begin|>{OBJECT}<|tool_call_end|><|tool_call_begin|>functions.now:1"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "gemma4": (
        f'<|tool_call>call:get_weather{{city:<|"|>{CITY}<|"|>,days:3}}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>"
    ),
    "function_gemma": (
        f"<start_function_call>call:get_weather{{city:<escape>{CITY}<escape>,days:3}}"
        "<end_function_call><start_function_call>call:now{}<end_function_call>"
    ),
    "mistral": f"[TOOL_CALLS][{JSON}, {NOW}]",
    "granite": f"<|tool_call|>[{JSON}, {NOW}]",
    "llama3": f"{JSON}; {NOW}",
    "llama4": f"[{JSON}, {NOW}]",
    "pythonic": f"[get_weather(city={CITY!r}, days=3), now()]",
    "harmony": (
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + OBJECT
    ),
}
OTHERWISE = [
    ("glm45", f"<tool_call>get_weather<arg_key>city</arg_key><arg_value>{CITY}</arg_value>"
     "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"),
    ("deepseek_v3", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{OBJECT}"
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    ("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{OBJECT}"),
    ("mistral", f"[TOOL_CALLS] [{JSON[:-1]}, \"id\": \"abc123def\"}}]"),
    ("llama3", JSON.replace("arguments", "parameters")),
    ("llama4", f"[get_weather(city={CITY!r}, days=3)]"),
    ("harmony", f" to=functions.get_weather<|channel|>commentary json<|message|>{OBJECT}"),
    ("harmony", "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json"
     f"<|message|>{OBJECT}<|call|>"),
    ("harmony", f"<|channel|>analysis to=functions.get_weather code<|message|>{OBJECT}<|call|>"),
]  # fmt: skip
"""What models of these families write beside what is asked for."""
BY_NAME = {known.name: known for known in CALL_FORMATS}
THINK = {known.name: known for known in REASONING_FORMATS}


def joined(parts):
    """Return thoughts, words and calls of ``parts``."""
    thoughts = "".join(part.text for part in parts if part.kind == "reasoning")
    words = "".join(part.text for part in parts if part.kind == "text")
    calls = [(part.call.name, json.loads(part.call.arguments)) for part in parts if part.call]
    return thoughts, words, calls


def read(text, calls=None, reasoning=None, cuts=(), **more):
    reader = PartReader(reasoning, calls, TOOLS, **more)
    at, parts = 0, []
    for cut in [*sorted(cuts), len(text)]:
        parts += reader.push(text[at:cut])
        at = cut
    return joined([*parts, *reader.flush()])


def test_every_format_has_its_case():
    assert set(WRITTEN) == set(BY_NAME)


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_read_whole_and_token_by_token(name):
    text = WRITTEN[name]
    wanted = CALLS[:1] if name == "harmony" else CALLS
    said = "" if not BY_NAME[name].begin else "Let me see.\n"
    for cuts in ([], range(len(said + text))):
        assert read(said + text, BY_NAME[name], cuts=cuts) == ("", said.strip(), wanted)


@pytest.mark.parametrize(("name", "text"), OTHERWISE)
def test_what_models_write_otherwise_is_read_whole_and_token_by_token(name, text):
    reasoning = THINK.get(name)
    for cuts in ([], range(len(text))):
        assert read(text, BY_NAME[name], reasoning, cuts) == ("", "", CALLS[:1])


def test_harmony_s_calls_follow_thoughts_and_words_whatever_stands_before_the_channel():
    thought = "<|channel|>analysis<|message|>hm<|end|>"
    said = "<|start|>assistant<|channel|>commentary<|message|>Let me look.<|end|>"
    for name, call in OTHERWISE[-2:]:
        start = "" if call.startswith("<|start|>") else "<|start|>assistant"
        text = thought + said + start + call
        for cuts in ([], range(len(text))):
            got = read(text, BY_NAME[name], THINK[name], cuts)
            assert got == ("hm", "Let me look.", CALLS[:1])
    text = "<|channel|>final<|message|>Write to=functions.now, and wait."
    assert read(text, BY_NAME["harmony"], THINK["harmony"]) == (
        "", "Write to=functions.now, and wait.", [],
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in WRITTEN if BY_NAME[name].begin])
def test_what_is_no_call_is_text_and_nothing_is_lost(name):
    known = BY_NAME[name]
    begin, end = known.begin, known.end
    for text in (f"a {begin} ? b", f"a {begin}no sense!{end} b", f"x{begin[:-1]}"):
        thoughts, words, calls = read(text, known)
        assert (thoughts, calls) == ("", [])
        assert words.replace(" ", "") == text.replace(" ", "")


def test_a_call_after_a_broken_one_is_read():
    text = f"<tool_call>broken</tool_call>\n<tool_call>{NOW}</tool_call>"
    _, words, calls = read(text, BY_NAME["hermes"])
    assert (words, calls) == ("<tool_call>broken</tool_call>", [("now", {})])


def test_a_mark_inside_an_argument_does_not_end_the_call():
    body = json.dumps({"name": "now", "arguments": {"x": "</tool_call>"}})
    _, words, calls = read(f"<tool_call>{body}</tool_call> done", BY_NAME["hermes"])
    assert (words, calls) == ("done", [("now", {"x": "</tool_call>"})])


def test_json_that_is_no_call_of_a_known_function_is_an_answer():
    for text in ('{"name": "unknown", "arguments": {}}', '{"a": 1}', "[1, 2]", "[sic] yes", "{"):
        assert read(text, BY_NAME["llama3"]) == ("", text, [])


def test_only_as_many_calls_as_are_wanted():
    assert read(WRITTEN["hermes"], BY_NAME["hermes"], max_calls=1)[2] == CALLS[:1]


@pytest.mark.parametrize(
    ("text", "is_thinking", "wanted"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, ("hm", "yes", [])),
        ("hm, so\n</think>\n\nyes", True, ("hm, so", "yes", [])),
        ("<think>\n\n</think>\n\nyes", False, ("", "yes", [])),
        ("never ends ", True, ("never ends", "", [])),
        ("I use <think> as a word", False, ("", "I use <think> as a word", [])),
        ("  no thoughts\n", False, ("", "  no thoughts\n", [])),
        (f"<think>a</think>{WRITTEN['hermes']}", False, ("a", "", CALLS)),
    ],
)
def test_thoughts_are_parted_from_words(text, is_thinking, wanted):
    for cuts in ([], range(len(text))):
        got = read(text, BY_NAME["hermes"], THINK["think"], cuts, is_thinking=is_thinking)
        assert got == wanted


def test_harmony_s_channels_are_parted():
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes"
    for cuts in ([], range(len(text))):
        assert read(text, BY_NAME["harmony"], THINK["harmony"], cuts) == ("hm", "yes", [])


def test_what_harmony_says_before_a_call_is_kept_as_text():
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "Let me look.<|end|><|start|>assistant" + WRITTEN["harmony"]
    )
    for cuts in ([], range(len(text))):
        got = read(text, BY_NAME["harmony"], THINK["harmony"], cuts)
        assert got == ("hm", "Let me look.", CALLS[:1])


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (
            'call:f{a:[1,-2.5,true,null],b:{c:<|"|>x, }]<|"|>}}',
            {"a": [1, -2.5, True, None], "b": {"c": "x, }]"}},
        ),
        ('call:f{"a": "b\\n", c : 1e3}', {"a": "b\n", "c": 1000.0}),
        ("call:f{}", {}),
        ("call:f{a}", None),
        ("call:f{a:b}", None),
        ('call:f{a:<|"|>b}', None),
        ("call:f{a:1", None),
        ("call:f" + "{a:" * 40, None),
        ("f{}", None),
    ],
)
def test_gemma_s_values_are_read(body, wanted):
    calls = BY_NAME["gemma4"].read(body, TOOLS)
    assert (None if calls is None else json.loads(calls[0].arguments)) == wanted


PIECES = st.lists(
    st.one_of(
        st.sampled_from([*WRITTEN.values(), "<think>", "</think>", "\n", " ", "<", "[", "{", "|"]),
        st.sampled_from([m for k in CALL_FORMATS for m in (k.begin, k.at_start, *k.others) if m]),
        st.sampled_from([text for _, text in OTHERWISE]),
        st.sampled_from([m for k in REASONING_FORMATS for m in (k.begin, k.end, *k.drops)]),
        st.text(max_size=6),
    ),
    max_size=8,
).map("".join)


@given(
    text=PIECES,
    name=st.sampled_from(sorted(BY_NAME)),
    thinks=st.sampled_from([*THINK, None]),
    is_thinking=st.booleans(),
    seed=st.randoms(use_true_random=False),
)
def test_any_split_of_the_text_gives_the_parts_of_the_whole(text, name, thinks, is_thinking, seed):
    reasoning = THINK.get(thinks)
    whole = read(text, BY_NAME[name], reasoning, is_thinking=is_thinking)
    cuts = [seed.randrange(len(text) + 1) for _ in range(seed.randrange(len(text) + 1))]
    assert read(text, BY_NAME[name], reasoning, cuts, is_thinking=is_thinking) == whole
    each = read(text, BY_NAME[name], reasoning, range(len(text)), is_thinking=is_thinking)
    assert each == whole


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        ("{{ '<tool_call>' }}{{ tools }}", "hermes", None),
        ("<tool_call><function= <think></think>", "qwen3_xml", "think"),
        ("<tool_call><arg_key><think></think>", "glm45", "think"),
        ("[TOOL_CALLS]", "mistral", None),
        ("<|tool_call><tool_call|><|channel>thought<channel|>", "gemma4", "gemma4"),
        ("<start_function_call>", "function_gemma", None),
        ("[TOOL_CALLS][THINK][/THINK]", "mistral", "mistral"),
        ("<|start_header_id|> tools parameters", "llama3", None),
        ("<|header_start|> tools", "llama4", None),
        ("<|header_start|> tools [func_name1(a=1)]", "pythonic", None),
        ("<|start_header_id|> tools parameters [func_name1(a=1)]", "pythonic", None),
        ("<｜tool▁calls▁begin｜>'<｜Assistant｜><think>\\n'", "deepseek_v3", "think"),
        ("<｜DSML｜function_calls> tool_calls <think>", "deepseek_v32", "think"),
        ("{% set d = '｜DSML｜' %}<{{ d }}function_calls>", "deepseek_v32", None),
        ("<｜DSML｜tool_calls>", "deepseek_v4", None),
        ("<|tool_calls_section_begin|><think></think>", "kimi_k2", "think"),
        ("◁think▷◁/think▷", None, "kimi"),
        ('<minimax:tool_call><invoke name="x"><think>', "minimax_m2", "think"),
        ("<TOOLCALL>[]</TOOLCALL> tools <|start_header_id|><think>", "nemotron", "think"),
        ("<|tool_call|>", "granite", None),
        (
            "<|channel|>analysis<|message|> commentary <|start|>assistant to=functions.",
            "harmony",
            "harmony",
        ),
        ("{{ messages }}", None, None),
    ],
)
def test_formats_are_detected_from_the_template(template, calls, reasoning):
    found = detect(template, CALL_FORMATS), detect(template, REASONING_FORMATS)
    assert tuple(known and known.name for known in found) == (calls, reasoning)


def repeated(calls):
    """Yield texts that begin or end calls over and over, and their readers' own heads."""
    begin, end = calls.begin, calls.end
    yield from (begin * 3000, (begin + "x" + end) * 3000, begin + ("x" + end) * 3000)
    for writing in calls.writings:
        heads = [writing.head, writing.head + "f" + writing.named]
        if writing.tagged is not None:
            heads += [writing.tagged.before, heads[1] + writing.tagged.before + "a"]
        yield from (begin + head * 3000 + end for head in heads if head)


@pytest.mark.parametrize("name", BY_NAME)
def test_what_looks_like_thousands_of_calls_is_read_in_time_and_nothing_is_lost(name):
    for text in repeated(BY_NAME[name]):
        reader = PartReader(None, BY_NAME[name], TOOLS)
        begun_s = time.process_time()
        parts = [part for at in range(0, len(text), 50) for part in reader.push(text[at : at + 50])]
        parts += reader.flush()
        assert time.process_time() - begun_s < 5  # 0.1 s, and for ever before it was bounded
        if reader.num_calls:
            continue
        words = "".join(part.text for part in parts if part.kind == "text")
        assert words.replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")


def test_a_call_after_a_few_broken_ones_is_read_and_after_many_it_is_text():
    hermes = BY_NAME["hermes"]
    broken, good = "<tool_call>x</tool_call>", WRITTEN["hermes"]
    assert read(broken * 5 + good, hermes)[2]
    assert read(broken * 50 + good, hermes)[2] == []


def test_python_that_is_too_long_to_parse_is_text():
    text = "[now(" + " " * (1 << 16) + ")]"
    assert read(text, BY_NAME["pythonic"])[2] == []


@pytest.mark.parametrize(
    ("name", "calls", "reasoning"),
    [
        ("glm45", "glm45", "think"),
        ("mistral", "mistral", "mistral"),
        ("kimi_k2", "kimi_k2", "think"),
        ("minimax_m2", "minimax_m2", "think"),
        ("nemotron", "nemotron", "think"),
        ("gpt-oss", "harmony", "harmony"),
        ("deepseekv31", "deepseek_v3", None),
        ("qwen3_coder", "qwen3_xml", None),
        ("deepseek-r1", None, "think"),
        ("nothing", None, None),
    ],
)
def test_a_name_may_stand_for_thoughts_and_for_calls(name, calls, reasoning):
    found = find_format(name, CALL_FORMATS), find_format(name, REASONING_FORMATS)
    assert tuple(known and known.name for known in found) == (calls, reasoning)


def test_every_name_of_another_engine_stands_for_a_format():
    for name in ALIASES:
        assert find_format(name, CALL_FORMATS) or find_format(name, REASONING_FORMATS), name
