"""The language: Python programs that generate, written once for every back end.

>>> import headstock as hs
>>> @hs.function
... def answer(s, question):
...     s += hs.user(question)
...     s += hs.assistant(hs.gen("answer", max_tokens=64))
"""

from headstock.frontend.api import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    greedy_token_selection,
    image,
    ref,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    token_length_normalized,
    unconditional_likelihood_normalized,
    user,
    user_begin,
    user_end,
    video,
    when,
)
from headstock.frontend.backends.anthropic import Anthropic
from headstock.frontend.backends.base import Backend
from headstock.frontend.backends.choose import flush_cache, get_server_info, set_default_backend
from headstock.frontend.backends.engine import EngineBackend
from headstock.frontend.backends.openai import OpenAI
from headstock.frontend.backends.server import HeadstockServer
from headstock.frontend.errors import ProgramError
from headstock.frontend.function import ProgramFunction, function
from headstock.frontend.state import ForkGroup, ProgramState
from headstock.frontend.trace import Trace

RuntimeEndpoint = HeadstockServer
"""SGLang's name of it."""

__all__ = [
    "Anthropic",
    "Backend",
    "EngineBackend",
    "ForkGroup",
    "HeadstockServer",
    "OpenAI",
    "ProgramError",
    "ProgramFunction",
    "ProgramState",
    "RuntimeEndpoint",
    "Trace",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "ref",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
    "when",
]
