"""instructor."""

from typing import Literal

import instructor
import openai
from pydantic import BaseModel, ConfigDict
from steps import MODEL, URL, attempt


class Verdict(BaseModel):
    """A verdict."""

    model_config = ConfigDict(extra="forbid")
    colour: Literal["red", "blue"]


def ask(mode):
    def run():
        plain = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
        client = instructor.from_openai(plain, mode=mode)
        found = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Is the sky red or blue?"}],
            response_model=Verdict,
            max_tokens=60,
            max_retries=1,
            temperature=0,
        )
        assert found.colour in ("red", "blue")

    return run


attempt("Mode.TOOLS", ask(instructor.Mode.TOOLS))
attempt("Mode.TOOLS_STRICT", ask(instructor.Mode.TOOLS_STRICT))
attempt("Mode.JSON_SCHEMA", ask(instructor.Mode.JSON_SCHEMA))
