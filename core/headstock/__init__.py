"""Headstock: one serving engine for language models, any accelerator.

``import headstock`` is cheap: it loads no tensor library, and nothing of its own rooms before it is
asked for. :class:`Engine` loads models; the other names are the language's, docs/language.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstock.assemble.offline import Engine, Runtime
    from headstock.frontend import (
        Anthropic,
        HeadstockServer,
        OpenAI,
        ProgramError,
        ProgramState,
        RuntimeEndpoint,
        assistant,
        assistant_begin,
        assistant_end,
        flush_cache,
        function,
        gen,
        gen_int,
        gen_string,
        get_server_info,
        greedy_token_selection,
        image,
        ref,
        select,
        separate_reasoning,
        set_default_backend,
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

__version__ = "0.1.0"
__all__ = [
    "Anthropic",
    "Engine",
    "HeadstockServer",
    "OpenAI",
    "ProgramError",
    "ProgramState",
    "Runtime",
    "RuntimeEndpoint",
    "__version__",
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
_ROOMS = {"Engine": "headstock.assemble.offline", "Runtime": "headstock.assemble.offline"}
"""Where a name comes from; the language, if nothing else is said."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'headstock' has no attribute {name!r}")
    found = getattr(importlib.import_module(_ROOMS.get(name, "headstock.frontend")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
