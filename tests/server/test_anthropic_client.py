"""The anthropic client against a server on loopback: what users' code does."""

import anthropic
import pytest

from headstock.config.schema import ServerSettings
from tests.server.conftest import Served
from tests.server.test_speech import ARGUMENTS, CALLS

CHAT = [{"role": "user", "content": "weather?"}]
TOOLS = [
    {
        "name": "get_weather",
        "description": "Tells the weather.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


@pytest.fixture(scope="module")
def client(speaking):
    with anthropic.Anthropic(base_url=speaking.url, api_key="none", max_retries=0) as made:
        yield made


def ask(client, *, is_streamed=False, **more):
    body = {"model": "echo", "max_tokens": 400, "messages": CHAT, **more}
    if not is_streamed:
        return client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        return stream.get_final_message()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_thoughts_words_and_calls_are_blocks(client, speaking, is_streamed):
    speaking.says("<think>\nhm\n</think>\n\nLet me look.\n" + CALLS)
    answer = ask(client, is_streamed=is_streamed, tools=TOOLS)
    thought, words, *calls = answer.content
    assert (thought.type, thought.thinking) == ("thinking", "hm")
    assert (words.type, words.text) == ("text", "Let me look.")
    assert [call.input for call in calls] == ARGUMENTS
    assert {(call.type, call.name) for call in calls} == {("tool_use", "get_weather")}
    assert all(call.id.startswith("toolu_") for call in calls)
    assert answer.stop_reason == "tool_use"
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.output_tokens == len(speaking.engine.script)
    assert answer.usage.input_tokens == len(speaking.tokenizer.encode(speaking.last_prompt)) - 3


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, ("Sunny today.", "end_turn", None)),
        ({"stop_sequences": ["today"]}, ("Sunny ", "stop_sequence", "today")),
        ({"max_tokens": 3}, ("Sun", "max_tokens", None)),
    ],
)
def test_the_reason_to_stop_is_named(client, speaking, is_streamed, more, wanted):
    speaking.says("Sunny today.")
    answer = ask(client, is_streamed=is_streamed, **more)
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == wanted


def test_the_end_of_the_context_has_a_reason_of_its_own(client, speaking):
    speaking.says("x" * 600)
    answer = ask(client, is_streamed=True, max_tokens=32000)
    assert answer.stop_reason == "model_context_window_exceeded"


def test_system_blocks_tool_results_and_thoughts_reach_the_template(client, speaking):
    speaking.says("ok")
    system = [
        {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be short."},
    ]
    history = [
        *CHAT,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {
                    "type": "tool_use",
                    "id": "toolu_1",
                    "name": "get_weather",
                    "input": {"city": "G"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "25 C"},
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    ask(client, system=system, messages=history, tools=TOOLS)
    assert speaking.last_prompt == (
        "<|turn|>tools:get_weather <|turn|>system:Be kind.\nBe short.<|turn|>user:weather?"
        '<|turn|>assistant:<think>hm</think><tool_call>{"name": "get_weather", "arguments": '
        '{"city": "G"}}</tool_call><|turn|>tool:25 C<|turn|>user:and?<|turn|>assistant:'
    )


def test_a_last_turn_of_the_assistant_is_gone_on_with(client, speaking):
    speaking.says("lo")
    ask(client, messages=[*CHAT, {"role": "assistant", "content": "Hel"}])
    assert speaking.last_prompt.endswith("assistant:Hel")


def test_thinking_follows_its_field(client, speaking):
    speaking.says("hm</think>yes")
    enabled = {"type": "enabled", "budget_tokens": 1024}
    answer = ask(client, thinking=enabled, max_tokens=2048)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    ask(client)
    assert not speaking.last_prompt.endswith("<think>")


def test_tokens_are_counted(client, speaking):
    count = client.messages.count_tokens(model="echo", messages=CHAT, tools=TOOLS, system="S")
    speaking.says("x")
    answer = ask(client, tools=TOOLS, system="S")
    usage = answer.usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "tool", "name": "g"}, "tools": TOOLS},
        {"tool_choice": {"type": "maybe"}, "tools": TOOLS},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": []},
        {"extra_body": {"temperature": 2}},
        {"max_tokens": 0},
        {"extra_body": {"mcp_servers": [{"url": "x"}]}},
        {"extra_body": {"output_config": {"format": {"type": "regex", "schema": {}}}}},
        {"extra_body": {"output_config": {"format": {"type": "json_schema"}}}},
    ],
)
def test_what_cannot_be_honoured_is_refused_in_their_envelope(client, more):
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, **more)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_another_model_and_a_wrong_key_have_their_types(client):
    with pytest.raises(anthropic.NotFoundError):
        ask(client, model="claude-9")
    with Served(settings=ServerSettings(port=0, api_keys=["a-long-enough-key"])) as locked:
        stranger = anthropic.Anthropic(base_url=locked.url, api_key="none", max_retries=0)
        with stranger, pytest.raises(anthropic.AuthenticationError):
            ask(stranger)
        with anthropic.Anthropic(base_url=locked.url, api_key="a-long-enough-key") as friend:
            assert ask(friend, max_tokens=2).content[0].text


def test_every_stream_has_the_events_in_their_order(speaking):
    speaking.says("<think>a</think>b")
    body = {"max_tokens": 99, "messages": CHAT, "stream": True}
    text = speaking.post("/v1/messages", body).text
    names = [line[7:] for line in text.split("\n") if line.startswith("event: ")]
    assert [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "auto"}}, None),
        ({"tools": TOOLS, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "get_weather"}}, "tool_choice"),
        ({"tools": [{**TOOLS[0], "strict": True}]}, "tools"),
        (
            {"extra_body": {"output_config": {"format": {"type": "json_schema", "schema": {}}}}},
            "output_config.format",
        ),
        ({"extra_body": {"output_config": {"effort": "low"}}}, None),
    ],
)
def test_a_choice_of_tools_is_a_grammar(client, speaking, more, field):
    speaking.says("hm")
    ask(client, **more)
    grammar = speaking.last_submit.grammar
    assert (grammar and grammar.field) == field


def test_input_of_bound_calls_comes_as_it_is_written(client, speaking):
    speaking.says(CALLS)
    more = {"tools": TOOLS, "tool_choice": {"type": "any"}}
    body = {"model": "echo", "max_tokens": 400, "messages": CHAT, **more}
    with client.messages.stream(**body) as stream:
        events = list(stream)
        streamed = stream.get_final_message()
    assert sum(event.type == "input_json" for event in events) > 30
    assert [block.input for block in streamed.content] == ARGUMENTS
    whole = ask(client, **more)
    assert [block.input for block in whole.content] == ARGUMENTS
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    cut = ask(client, **{**more, "max_tokens": 60})
    assert cut.stop_reason == "max_tokens"
    assert not [block for block in cut.content if block.type == "tool_use"]
