"""The one typed request that every route ends in."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from headstock.requests import SamplingParams
from headstock.requests.sampling import Int64, Priority, TokenId

MAX_TOP_LOGPROBS = 128
MAX_ASKED_IDS = 128


class TextPrompt(msgspec.Struct, frozen=True, tag=True):
    """Text to tokenise.

    Attributes:
        add_special_tokens: Let the tokenizer add its own, such as a beginning-of-sequence token.
    """

    text: str
    add_special_tokens: bool = True


class TokensPrompt(msgspec.Struct, frozen=True, tag=True):
    """Token ids as they are."""

    token_ids: list[Int64]


class ChatPrompt(msgspec.Struct, frozen=True, tag=True):
    """Messages for the model's chat template.

    Attributes:
        messages: ``role``, ``content`` and what else the template reads; content is
            text, or a list of text parts.
        tools: Functions that the model may call, as templates read them.
        extra: More variables for the template.
        continue_final: The last message is an assistant's, to be gone on with.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final: bool = False


Prompt = TextPrompt | TokensPrompt | ChatPrompt


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, and how to go on from it; ``params.n`` completions are made.

    Attributes:
        rid: The caller's own name for it, which aborts can use; never a key inside.
        is_clipped: ``max_new_tokens`` is a default: lower it where the context ends, instead of
            refusing the request.
        logprobs: -1: none; k: the drawn token's and the top k's.
        prompt_logprobs_from: Prompt position from which logprobs are wanted; None: none are.
        asked_ids: Ids whose logprobs are wanted at each of those positions.
        namespace: Cached prefixes are shared only within one.
        names: What the caller calls ``input_ids``, ``max_new_tokens`` and so on, where it differs.
        keep_last: Tokens of the prompt to keep, the last ones; None: all.
    """

    prompt: Prompt
    params: SamplingParams = SamplingParams()
    rid: str | None = None
    is_clipped: bool = False
    logprobs: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOP_LOGPROBS)] = -1
    prompt_logprobs_from: Int64 | None = None
    asked_ids: Annotated[list[TokenId], msgspec.Meta(max_length=MAX_ASKED_IDS)] = []
    namespace: str = ""
    priority: Priority = 0
    names: dict[str, str] = {}
    keep_last: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def called(self, field: str) -> str:
        """Return what the caller calls ``field``."""
        return self.names.get(field, field)
