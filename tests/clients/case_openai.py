"""The openai package."""

from typing import Literal

import openai
from pydantic import BaseModel
from steps import MODEL, URL, attempt

client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
SAY = [{"role": "user", "content": "Say hello."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


class Verdict(BaseModel):
    colour: Literal["red", "blue"]


def models():
    assert MODEL in [model.id for model in client.models.list()]


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=SAY, max_completion_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 8


def stream():
    options = {"include_usage": True}
    events = list(
        client.chat.completions.create(
            model=MODEL, messages=SAY, max_tokens=8, stream=True, stream_options=options
        )
    )
    assert events[-1].usage.completion_tokens <= 8
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices)


def logprobs():
    answer = client.chat.completions.create(
        model=MODEL, messages=SAY, max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def parse():
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Is the sky red or blue?"}],
        response_format=Verdict,
        max_tokens=40,
    )
    assert answer.choices[0].message.parsed.colour in ("red", "blue")


def tools():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Weather in Rome?"}],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=60,
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"


def completions():
    answer = client.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4)
    assert len(answer.choices) == 2


def responses():
    answer = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8)
    assert answer.output_text


def response_stream():
    with client.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=8) as events:
        kinds = [event.type for event in events]
    assert kinds[0] == "response.created"


def refusal():
    try:
        client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=2, top_p=9)
    except openai.BadRequestError as error:
        assert error.param == "top_p", error
    else:
        raise AssertionError("a top_p of 9 was taken")


attempt("models", models)
attempt("chat", chat)
attempt("chat stream with usage", stream)
attempt("logprobs", logprobs)
attempt("parse into a pydantic model", parse)
attempt("a required tool", tools)
attempt("completions of two prompts", completions)
attempt("responses", responses)
attempt("responses stream", response_stream)
attempt("an error names its field", refusal)
