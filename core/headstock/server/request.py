"""The one typed request that every route ends in."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from headstock.multimodal import Source
from headstock.requests import Grammar, SamplingParams
from headstock.requests.sampling import Int64, Priority, TokenId
from headstock.server.speech import Speech
from headstock.server.thought_budget import ThoughtBudget

MAX_TOP_LOGPROBS = 128
MAX_ASKED_IDS = 128


class TextPrompt(msgspec.Struct, frozen=True, tag=True):
    """Text to tokenise.

    Attributes:
        add_special_tokens: Whether the tokenizer adds its own, such as one that begins a sequence.
        images: For the model's placeholders in the text, in order.
        keep_first: Tokens to keep of a longer text, those of the tokenizer among them; None: all.
    """

    text: str
    add_special_tokens: bool = True
    images: list[Source] = []
    keep_first: int | None = None


class PairPrompt(msgspec.Struct, frozen=True, tag=True):
    """Two texts for a model that reads them together, such as a query and a document.

    Attributes:
        type_stride: Added to the ids of the second text's tokens, where the model tells them apart
            by that; 0: it does not.
        keep_first: As in :class:`TextPrompt`; the longer text is cut.
    """

    text: str
    pair: str
    type_stride: int = 0
    keep_first: int | None = None
    images: list[Source] = []


class TokensPrompt(msgspec.Struct, frozen=True, tag=True):
    """Token ids as they are.

    Attributes:
        images: For the model's placeholders among them, in order.
    """

    token_ids: list[Int64]
    images: list[Source] = []


class ChatPrompt(msgspec.Struct, frozen=True, tag=True):
    """Messages for the model's chat template.

    Attributes:
        messages: ``role``, ``content`` and what else the template reads; content is
            text, or a list of parts: texts, and ``{"type": "image"}`` where an image stands.
        tools: Functions that the model may call, as templates read them.
        extra: More variables for the template.
        continue_final: Whether the last message is an assistant's that the answer continues.
        images: Of the messages' parts, in order.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final: bool = False
    images: list[Source] = []


Prompt = TextPrompt | PairPrompt | TokensPrompt | ChatPrompt


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
        grammar: What the output must look like; None: anything.
        pool: What is wanted instead of tokens: ``pool`` (one vector), ``token_embed`` or
            ``token_classify`` (something of each of the prompt's tokens); "": tokens are.
        adapter: Name of the LoRA adapter that it is served with; "": none.
        allowed_token_ids: Ids that may be drawn, those that end it among them; none: all.
        bad_words: Texts that the output must not have.
        speech: Which parts of its answer are separated, for grammars of calls; None: nothing.
        thoughts: How long it may think; None: without end.
        user: Who of those that use one key sends it; "": its address tells.
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
    grammar: Grammar | None = None
    pool: str = ""
    adapter: str = ""
    allowed_token_ids: list[int] = []
    bad_words: list[str] = []
    speech: Speech | None = None
    thoughts: ThoughtBudget | None = None
    user: str = ""

    def called(self, field: str) -> str:
        """Return what the caller calls ``field``."""
        return self.names.get(field, field)
