"""The ollama client against a server on loopback: what users' code does."""

import json

import httpx
import ollama
import pytest

from tests.server.test_speech import ARGUMENTS, CALLS, TOOLS

CHAT = [{"role": "user", "content": "weather?"}]


@pytest.fixture(scope="module")
def client(speaking):
    return ollama.Client(host=speaking.url)


def chat(client, *, is_streamed=False, **more):
    """Return thoughts, words, calls and the last line."""
    found = client.chat(model="echo", messages=CHAT, stream=is_streamed, **more)
    lines = list(found) if is_streamed else [found]
    thoughts = "".join(line.message.thinking or "" for line in lines)
    words = "".join(line.message.content or "" for line in lines)
    calls = [call.function for line in lines for call in line.message.tool_calls or []]
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    return thoughts, words, calls, lines[-1]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_thoughts_words_and_calls_are_told_apart(client, speaking, is_streamed):
    speaking.says("<think>\nhm\n</think>\n\nLet me look.\n" + CALLS)
    thoughts, words, calls, last = chat(client, is_streamed=is_streamed, tools=TOOLS)
    assert (thoughts, words) == ("hm", "Let me look.")
    assert [(call.name, call.arguments) for call in calls] == [
        ("get_weather", arguments) for arguments in ARGUMENTS
    ]
    assert last.done_reason == "stop"
    assert last.eval_count == len(speaking.engine.script)
    assert last.prompt_eval_count == len(speaking.tokenizer.encode(speaking.last_prompt))
    assert last.total_duration >= last.prompt_eval_duration + last.eval_duration - 1000


@pytest.mark.parametrize("is_streamed", [False, True])
def test_options_are_honoured(client, speaking, is_streamed):
    speaking.says("Sunny today.")
    _, words, _, last = chat(client, is_streamed=is_streamed, options={"num_predict": 3, "seed": 7})
    assert (words, last.done_reason) == ("Sun", "length")
    options = {"stop": ["today"], "num_predict": -1, "repeat_penalty": 1.1, "num_ctx": 4096}
    assert chat(client, is_streamed=is_streamed, options=options)[1] == "Sunny "
    submit = [m for m in speaking.engine.seen if type(m).__name__ == "Submit"][-1]
    assert submit.params.repetition_penalty == 1.1


def test_thinking_is_turned_on_and_off(client, speaking):
    speaking.says("hm</think>yes")
    assert chat(client, think=True)[:2] == ("hm", "yes")
    assert chat(client, think=False)[:2] == ("", "hm</think>yes")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_prompt_is_a_chat_of_one_turn_unless_it_is_raw(client, speaking, is_streamed):
    speaking.says("Sunny.")

    def ask(**more):
        found = client.generate(model="echo:latest", stream=is_streamed, **more)
        return "".join(line.response for line in (found if is_streamed else [found]))

    assert ask(prompt="weather?", system="Be kind.") == "Sunny."
    assert speaking.last_prompt == "<|turn|>system:Be kind.<|turn|>user:weather?<|turn|>assistant:"
    assert ask(prompt="weather?", raw=True) == "Sunny."
    assert speaking.last_prompt == "weather?"


def test_the_history_of_calls_reaches_the_template(client, speaking):
    speaking.says("ok")
    call = {"function": {"name": "get_weather", "arguments": {"city": "G"}}}
    history = [
        *CHAT,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "25 C", "tool_name": "get_weather"},
    ]
    client.chat(model="echo", messages=history, tools=TOOLS)
    assert speaking.last_prompt.endswith(
        '<|turn|>assistant:<tool_call>{"name": "get_weather", "arguments": {"city": "G"}}'
        "</tool_call><|turn|>tool:25 C<|turn|>assistant:"
    )


def test_the_model_is_listed_shown_and_loaded(client, speaking):
    assert [model.model for model in client.list().models] == ["echo:latest"]
    assert [model.model for model in client.ps().models] == ["echo:latest"]
    shown = client.show("echo")
    assert {"completion", "tools", "thinking"} == set(shown.capabilities)
    assert "tool_call" in shown.template
    assert client.generate(model="echo").done_reason == "load"
    assert speaking.get("/api/version").json()["version"]


def test_json_of_any_content_type_is_taken(speaking):
    speaking.says("ok")
    body = json.dumps({"model": "echo", "messages": CHAT, "stream": False})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = httpx.post(speaking.url + "/api/chat", content=body, headers=headers)
    assert answer.json()["message"]["content"] == "ok"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"options": {"temperature": -1}}, "temperature"),
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_their_envelope(client, more, words):
    with pytest.raises(ollama.ResponseError, match=words) as caught:
        chat(client, **more)
    assert caught.value.status_code == 400


def test_another_model_is_not_found_and_images_are_refused(client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(model="llama9", messages=CHAT)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="images"):
        client.chat(model="echo", messages=[{"role": "user", "content": "x", "images": [b"x"]}])
    with pytest.raises(ollama.ResponseError, match="generates text") as caught:
        client.embed(model="echo", input="x")
    assert caught.value.status_code == 400


def test_the_native_generate_is_another_route(speaking):
    speaking.says("ok")
    assert speaking.post("/generate", {"text": "x"}).json()["meta_info"]


def test_a_strict_function_binds_and_its_call_comes_whole(speaking):
    speaking.says("So: " + CALLS)
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]
    body = {"model": "echo", "messages": CHAT, "tools": strict}
    lines = [
        json.loads(line)
        for line in httpx.post(f"{speaking.url}/api/chat", json=body).text.splitlines()
    ]
    calls = [call for line in lines for call in line["message"].get("tool_calls", [])]
    assert [call["function"]["arguments"] for call in calls] == ARGUMENTS
    assert speaking.last_submit.grammar.field == "tools"


def test_a_format_is_a_grammar(client, speaking):
    speaking.says("{}")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for given, kind in (("json", "json_object"), (schema, "json_schema")):
        client.generate(model="echo", prompt="a", format=given, raw=True)
        grammar = speaking.last_submit.grammar
        assert grammar.kind == kind
        assert json.loads(grammar.text or "null") == (schema if kind == "json_schema" else None)
        client.chat(model="echo", messages=CHAT, format=given)
        assert speaking.last_submit.grammar.kind == "lark", "thoughts come before it"
    client.generate(model="echo", prompt="a", format="", raw=True)
    assert speaking.last_submit.grammar is None
    sent = {"model": "echo", "messages": CHAT, "format": "yaml"}
    answer = httpx.post(speaking.url + "/api/chat", json=sent, timeout=20)
    assert answer.status_code == 400
    assert "format is 'yaml'" in answer.json()["error"]
