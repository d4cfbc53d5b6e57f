"""Tools and thoughts through the openai client, whole and streamed."""

import json

import openai
import pytest

CHAT = [{"role": "user", "content": "weather?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Graz"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "São Paulo"}}\n</tool_call>'
)
ARGUMENTS = [{"city": "Graz"}, {"city": "São Paulo"}]


@pytest.fixture(scope="module")
def client(speaking):
    with openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def joined(chunks):
    """Return thoughts, words, calls (name and arguments by index) and the finish reason."""
    thoughts, words, finish, calls = "", "", None, {}
    for chunk in chunks:
        choice = chunk.choices[0]
        finish = choice.finish_reason or finish
        words += choice.delta.content or ""
        thoughts += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            assert bool(call.id) == bool(call.function.name) == (call.index not in calls)
            calls.setdefault(call.index, [call.function.name, ""])[1] += call.function.arguments
    return thoughts, words, [calls[index] for index in sorted(calls)], finish


def ask(client, *, is_streamed=False, messages=CHAT, **more):
    answer = client.chat.completions.create(
        model="echo", messages=messages, stream=is_streamed, **more
    )
    if is_streamed:
        return joined(answer)
    choice = answer.choices[0]
    found = choice.message
    calls = [[c.function.name, c.function.arguments] for c in found.tool_calls or []]
    thoughts = getattr(found, "reasoning_content", None) or ""
    return thoughts, found.content or "", calls, choice.finish_reason


@pytest.mark.parametrize("is_streamed", [False, True])
def test_calls_are_told_from_words(client, speaking, is_streamed):
    speaking.says("Let me look.\n" + CALLS)
    found = ask(client, is_streamed=is_streamed, tools=TOOLS)
    assert found[:2] == ("", "Let me look.")
    assert [(name, json.loads(arguments)) for name, arguments in found[2]] == [
        ("get_weather", arguments) for arguments in ARGUMENTS
    ]
    assert found[3] == "tool_calls"
    assert "tools:get_weather" in speaking.last_prompt


@pytest.mark.parametrize("is_streamed", [False, True])
def test_without_tools_the_same_text_is_words(client, speaking, is_streamed):
    speaking.says(CALLS)
    assert ask(client, is_streamed=is_streamed) == ("", CALLS, [], "stop")
    found = ask(client, is_streamed=is_streamed, tools=TOOLS, tool_choice="none")
    assert found == ("", CALLS, [], "stop")
    assert "tools:" not in speaking.last_prompt


def test_one_call_at_a_time_where_that_is_asked(client, speaking):
    speaking.says(CALLS)
    assert len(ask(client, tools=TOOLS, parallel_tool_calls=False)[2]) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("has_begun", [False, True])
def test_thoughts_are_told_from_words(client, speaking, is_streamed, has_begun):
    speaking.says(("" if has_begun else "<think>\n") + "hm\n</think>\n\nSunny.")
    more = {"extra_body": {"chat_template_kwargs": {"enable_thinking": has_begun}}}
    found = ask(client, is_streamed=is_streamed, **more)
    assert found == ("hm", "Sunny.", [], "stop")
    raw = ask(client, is_streamed=is_streamed, extra_body={"separate_reasoning": False})
    assert raw[0] == ""
    assert raw[1].endswith("hm\n</think>\n\nSunny.")


def test_tokens_of_thoughts_are_counted(client, speaking):
    speaking.says("<think>hm</think>yes")
    more = {"model": "echo", "messages": CHAT}
    usage = client.chat.completions.create(**more).usage
    assert usage.completion_tokens_details.reasoning_tokens == len("<think>hm</think>")
    *_, last = client.chat.completions.create(
        **more, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage == usage
    speaking.says("yes")
    assert client.chat.completions.create(**more).usage.completion_tokens_details is None


def test_thinking_is_turned_on_and_off_by_its_field(client, speaking):
    speaking.says("ok")
    for kind, is_on in (("enabled", True), ("disabled", False)):
        ask(client, extra_body={"thinking": {"type": kind}})
        assert speaking.last_prompt.endswith("<think>") == is_on


def test_the_history_of_calls_reaches_the_template(client, speaking):
    speaking.says("Sunny.")
    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": "get_weather", "arguments": json.dumps({"city": "Graz"})}
    history = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "25 C"},
    ]
    assert ask(client, messages=history, tools=TOOLS)[1] == "Sunny."
    shown = '<tool_call>{"name": "get_weather", "arguments": {"city": "Graz"}}</tool_call>'
    assert f"<|turn|>assistant:{shown}<|turn|>tool:25 C" in speaking.last_prompt


def test_tokens_and_logprobs_come_once_each_beside_the_parts(client, speaking):
    speaking.says("<think>a</think>b" + CALLS)
    chunks = list(
        client.chat.completions.create(
            model="echo", messages=CHAT, tools=TOOLS, stream=True, logprobs=True,
            extra_body={"return_token_ids": True},
        )
    )  # fmt: skip
    told = [chunk.choices[0] for chunk in chunks]
    ids = [i for choice in told for i in getattr(choice, "token_ids", None) or []]
    assert ids == speaking.engine.script
    assert sum(len(c.logprobs.content) for c in told if c.logprobs) == len(ids)
    assert joined(chunks)[:2] == ("a", "b")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto"}},
         "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}], "tool_choice": "required"},
         "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": ["x"] *
          6000}}}], "tool_choice": "required"}, "tools"),
    ],
)  # fmt: skip
def test_what_is_no_choice_of_a_function_is_refused(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **more)
    assert caught.value.param == param


NAMED = {"type": "function", "function": {"name": "get_weather"}}
STRICT = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]


@pytest.mark.parametrize(
    ("more", "field", "words_first", "is_single"),
    [
        ({"tools": TOOLS}, None, None, None),
        ({"tools": TOOLS, "tool_choice": "none"}, None, None, None),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice", False, False),
        ({"tools": TOOLS, "tool_choice": NAMED}, "tool_choice", False, True),
        ({"tools": STRICT}, "tools", True, False),
        ({"tools": STRICT, "parallel_tool_calls": False}, "tools", True, True),
        ({"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
         "tool_choice", False, True),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools":
          {"mode": "required", "tools": [NAMED]}}}, "tool_choice", False, True),
    ],
)  # fmt: skip
def test_a_choice_of_functions_is_a_grammar(client, speaking, more, field, words_first, is_single):
    speaking.says("hm")
    ask(client, **more)
    grammar = speaking.last_submit.grammar
    assert (grammar and grammar.field) == field
    if grammar is not None:
        rules = grammar.text[grammar.text.index("start:") :]
        assert ("rest" in rules) == words_first
        assert (")*" in rules) != is_single
        assert "get_weather" in grammar.text


def test_a_form_of_the_words_leaves_room_for_thoughts_and_calls(client, speaking):
    speaking.says("hm")
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    ask(client, response_format=form, tools=TOOLS)
    grammar = speaking.last_submit.grammar
    assert (grammar.kind, grammar.field) == ("lark", "response_format")
    assert "get_weather" in grammar.text
    assert "</think>" in grammar.text
    ask(client, response_format=form, extra_body={"separate_reasoning": False})
    assert speaking.last_submit.grammar.kind == "json_schema"


def test_a_model_without_tools_refuses_them_and_their_history(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as plain:
        with pytest.raises(openai.BadRequestError, match="shows no tools"):
            ask(plain, tools=TOOLS)
        history = [*CHAT, {"role": "tool", "tool_call_id": "1", "content": "x"}]
        with pytest.raises(openai.BadRequestError, match="shows no calls"):
            ask(plain, messages=history)


def test_texts_are_parted_as_a_service(served):
    body = {"text": "ok " + CALLS, "tool_call_parser": "qwen25", "tools": TOOLS}
    answer = served.post("/parse_function_call", body).json()
    assert answer["normal_text"] == "ok"
    assert [(c["tool_index"], c["name"]) for c in answer["calls"]] == [(0, "get_weather")] * 2
    assert [json.loads(call["parameters"]) for call in answer["calls"]] == ARGUMENTS
    for text in ("<think>hm</think>yes", "hm</think>yes"):
        body = {"text": text, "reasoning_parser": "deepseek-r1"}
        wanted = {"reasoning_text": "hm", "text": "yes"}
        assert served.post("/separate_reasoning", body).json() == wanted
    refusal = served.post("/separate_reasoning", {"text": "x", "reasoning_parser": "nope"}).json()
    assert refusal["error"]["param"] == "reasoning_parser"


def test_marks_that_are_special_tokens_stay_in_the_text_only_where_they_are_read():
    from headstock.requests import SamplingParams
    from headstock.server.protocols.messages import speech_of, spoken
    from headstock.server.speech import find_dialect
    from headstock.text import Tokenizer
    from tests.server.toy_tokenizer import toy_backend

    backend = toy_backend()
    backend.add_special_tokens(["[TOOL_CALLS]"])
    template = "{{ tools }}[TOOL_CALLS]<think></think>"
    dialect = find_dialect(template, Tokenizer(backend))
    assert dialect.special == {"calls"}
    params = SamplingParams()
    thinks, calls = speech_of(dialect, []), speech_of(dialect, TOOLS)
    assert spoken(params, thinks, dialect).skip_special_tokens
    assert not spoken(params, calls, dialect).skip_special_tokens


def test_arguments_of_bound_calls_come_as_they_are_written(client, speaking):
    speaking.says(CALLS)
    chunks = list(
        client.chat.completions.create(
            model="echo", messages=CHAT, stream=True, tools=TOOLS, tool_choice="required"
        )
    )
    deltas = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
    assert len(deltas) > 30
    streamed = joined(chunks)
    assert [[name, json.loads(text)] for name, text in streamed[2]] == [
        ["get_weather", arguments] for arguments in ARGUMENTS
    ]
    assert streamed[3] == "tool_calls"
    assert ask(client, tools=TOOLS, tool_choice="required") == streamed
    cut = ask(client, tools=TOOLS, tool_choice="required", max_tokens=60)
    assert cut == ask(client, is_streamed=True, tools=TOOLS, tool_choice="required", max_tokens=60)
    assert cut[3] == "length"
    assert '{"city": "Graz"}'.startswith(cut[2][0][1])


def test_two_forms_of_one_answer_are_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tools=TOOLS, tool_choice="required", extra_body={"regex": "a+"})
    assert caught.value.param == "tool_choice"
