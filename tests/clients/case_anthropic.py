"""The anthropic package."""

import anthropic
from steps import MODEL, URL, attempt

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
SAY = [{"role": "user", "content": "Say hello."}]
TOOLS = [
    {
        "name": "get_weather",
        "description": "Tell the weather",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
]


def messages():
    answer = client.messages.create(model=MODEL, messages=SAY, max_tokens=8, system="Be brief.")
    assert answer.content[0].text
    assert answer.stop_reason in ("max_tokens", "end_turn")


def stream():
    with client.messages.stream(model=MODEL, messages=SAY, max_tokens=8) as events:
        text = "".join(events.text_stream)
        assert text == events.get_final_text()


def count():
    assert client.messages.count_tokens(model=MODEL, messages=SAY).input_tokens > 2


def tools():
    answer = client.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Weather in Rome?"}],
        tools=TOOLS,
        tool_choice={"type": "tool", "name": "get_weather"},
        max_tokens=60,
    )
    assert answer.content[-1].input["city"] in ("Paris", "Rome"), answer


attempt("messages", messages)
attempt("stream", stream)
attempt("count_tokens", count)
attempt("a named tool", tools)
