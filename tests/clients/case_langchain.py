"""langchain-openai."""

from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from steps import MODEL, URL, attempt

chat = ChatOpenAI(
    base_url=URL + "/v1", api_key="none", model=MODEL, max_tokens=80, max_retries=0, temperature=0
)


class Verdict(BaseModel):
    """A verdict."""

    colour: Literal["red", "blue"]


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Tell the weather of a city."""
    return city


def invoke():
    answer = chat.invoke("Say hello.")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def stream():
    assert "".join(chunk.content for chunk in chat.stream("Say hello."))


def structured():
    assert chat.with_structured_output(Verdict).invoke("Red or blue?").colour in ("red", "blue")


def tools():
    bound = chat.bind_tools([get_weather], tool_choice="required", strict=True)
    assert bound.invoke("Weather in Rome?").tool_calls[0]["name"] == "get_weather"


def batch():
    assert len(chat.batch(["One.", "Two.", "Three."])) == 3


attempt("invoke", invoke)
attempt("stream", stream)
attempt("with_structured_output", structured)
attempt("bind_tools, required", tools)
attempt("batch", batch)
