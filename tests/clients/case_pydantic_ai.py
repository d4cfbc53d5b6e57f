"""pydantic-ai."""

import asyncio
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from steps import MODEL, URL, attempt

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL + "/v1", api_key="none"))
FEW = {"max_tokens": 60, "temperature": 0.0}


class Verdict(BaseModel):
    """A verdict."""

    colour: Literal["red", "blue"]


def text():
    assert Agent(model, model_settings=FEW).run_sync("Say hello.").output


def stream():
    async def run():
        async with Agent(model, model_settings=FEW).run_stream("Say hello.") as found:
            return [piece async for piece in found.stream_text(delta=True)]

    assert asyncio.run(run())


def native():
    agent = Agent(model, output_type=NativeOutput(Verdict), model_settings=FEW)
    assert agent.run_sync("Is the sky red or blue?").output.colour in ("red", "blue")


def by_tool():
    agent = Agent(model, output_type=ToolOutput(Verdict), model_settings=FEW)
    assert agent.run_sync("Is the sky red or blue?").output.colour in ("red", "blue")


attempt("text", text)
attempt("stream", stream)
attempt("native output", native)
attempt("output by a tool", by_tool)
