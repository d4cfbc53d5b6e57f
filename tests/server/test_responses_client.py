"""Responses through the openai client, whole and streamed."""

import json

import openai
import pytest

from tests.server.test_speech import ARGUMENTS, CALLS

CITY = '{"city":"G"}'
TOOLS = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


@pytest.fixture(scope="module")
def client(speaking):
    with openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client, *, is_streamed=False, **more):
    body = {"model": "echo", "input": "weather?", **more}
    if not is_streamed:
        return client.responses.create(**body)
    events = list(client.responses.create(**body, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events[-1].response


@pytest.mark.parametrize("is_streamed", [False, True])
def test_thoughts_words_and_calls_are_items(client, speaking, is_streamed):
    speaking.says("<think>\nhm\n</think>\n\nLet me look.\n" + CALLS)
    answer = ask(client, is_streamed=is_streamed, tools=TOOLS)
    thought, words, *calls = answer.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "hm")
    assert (words.type, words.content[0].text) == ("message", "Let me look.")
    assert [json.loads(call.arguments) for call in calls] == ARGUMENTS
    assert {(call.type, call.name) for call in calls} == {("function_call", "get_weather")}
    assert (answer.status, answer.output_text) == ("completed", "Let me look.")
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.output_tokens == len(speaking.engine.script)


def test_the_events_of_a_stream_build_its_response(client, speaking):
    speaking.says("<think>a</think>héllo" + CALLS)
    with client.responses.stream(model="echo", input="x", tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    for kind in ("added", "done"):
        assert kinds.count(f"response.output_item.{kind}") == 4
    assert final.output_text == "héllo"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_was_cut_is_incomplete(client, speaking, is_streamed):
    speaking.says("a long answer")
    answer = ask(client, is_streamed=is_streamed, max_output_tokens=6)
    assert (answer.status, answer.output_text) == ("incomplete", "a long")
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_items_and_instructions_reach_the_template(client, speaking):
    speaking.says("ok")
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": CITY},
        {"type": "function_call_output", "call_id": "c1", "output": "25 C"},
    ]
    ask(client, input=items, instructions="Be kind.", tools=TOOLS)
    assert speaking.last_prompt == (
        "<|turn|>tools:get_weather <|turn|>system:Be kind.<|turn|>user:weather?<|turn|>assistant:"
        '<tool_call>{"name": "get_weather", "arguments": {"city": "G"}}</tool_call>'
        "<|turn|>tool:25 C<|turn|>assistant:"
    )


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stored_response_is_found_followed_and_forgotten(client, speaking, is_streamed):
    speaking.says("Sunny.")
    first = ask(client, is_streamed=is_streamed, store=True)
    assert client.responses.retrieve(first.id).output_text == "Sunny."
    ask(client, input="and now?", previous_response_id=first.id)
    assert "user:weather?<|turn|>assistant:Sunny.<|turn|>user:and now?" in speaking.last_prompt
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_what_was_not_to_be_stored_is_not(client, speaking):
    speaking.says("Sunny.")
    answer = ask(client)
    with pytest.raises(openai.NotFoundError, match="store: true"):
        ask(client, previous_response_id=answer.id)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "messages"),
        ({"background": True, "store": False}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 100_000}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **more)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "get_weather"}},
         "tool_choice"),
        ({"tools": [{**TOOLS[0], "strict": True}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "strict": True,
                              "schema": {"type": "integer"}}}}, "text.format"),
    ],
)  # fmt: skip
def test_forms_of_words_and_calls_are_grammars(client, speaking, more, field):
    speaking.says("hm")
    answer = ask(client, **more)
    assert speaking.last_submit.grammar.field == field
    if field == "text.format":
        assert answer.text.format.type == more["text"]["format"]["type"]


def test_arguments_of_bound_calls_come_as_they_are_written(client, speaking):
    speaking.says(CALLS)
    how = {"model": "echo", "input": "weather?", "tools": TOOLS, "tool_choice": "required"}
    events = list(client.responses.create(**how, stream=True))
    kinds = [event.type for event in events]
    assert kinds.count("response.function_call_arguments.delta") > 30
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in done] == ARGUMENTS
    whole = client.responses.create(**how)
    assert [json.loads(item.arguments) for item in whole.output] == ARGUMENTS
    last = events[-1].response
    assert [(i.name, i.arguments, i.status) for i in last.output] == [
        (i.name, i.arguments, i.status) for i in whole.output
    ]
    cut = list(client.responses.create(**how, stream=True, max_output_tokens=60))
    assert cut[-1].type == "response.incomplete"
    assert [item.status for item in cut[-1].response.output] == ["incomplete"]
    told = [e.output_index for e in cut if e.type == "response.output_item.done"]
    assert told == [0]
