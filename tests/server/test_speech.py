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
            assert call.id
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
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools"),
    ],
)
def test_what_needs_a_grammar_is_refused(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **more)
    assert (caught.value.param, caught.value.code) == (param, "not_supported")


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
    from headstock.server.protocols.messages import speech_of
    from headstock.server.protocols.openai_bodies import spoken
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
