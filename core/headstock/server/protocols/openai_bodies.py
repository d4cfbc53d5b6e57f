"""Bodies of the OpenAI routes, and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from headstock.requests.sampling import Int64, Priority
from headstock.server.protocols.grammars import ResponseFormat
from headstock.server.protocols.messages import (
    ChatMessage,
    Tool,
)
from headstock.server.protocols.parameters import (
    CHANGE_ANSWERS,
)
from headstock.server.request import GenerateRequest
from headstock.server.sessions import SessionParams
from headstock.server.speech import Speech
from headstock.server.thought_budget import Thinking

DEFAULT_COMPLETION_TOKENS = 16

Stop = str | list[str] | None
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None
Limit = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None
"""-1: as many as there can be."""


class StreamOptions(msgspec.Struct):
    """What a stream carries beside its tokens."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SharedBody(msgspec.Struct, kw_only=True):
    """What chats and completions have in common; unknown keys are reported, not honoured."""

    REFUSES: ClassVar[frozenset[str]] = CHANGE_ANSWERS

    model: str | None = None
    max_tokens: Limit = None
    min_tokens: Count = None
    n: Int64 | None = None
    best_of: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Int64 | None = None
    stop: Stop = None
    stop_token_ids: list[Int64] | None = None
    stop_regex: Stop = None
    ignore_eos: bool | None = None
    no_stop_trim: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: Limit = None
    prompt_logprobs: Count = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[Int64] | None = None
    bad_words: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    rid: str | None = None
    priority: Priority | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    lora_path: str | None = None
    session_id: Any = None
    session_params: SessionParams | None = None
    custom_params: Any = None
    custom_logit_processor: Any = None
    watermark: Any = None
    return_hidden_states: Any = None
    return_routed_experts: Any = None


class CompletionBody(SharedBody, kw_only=True):
    """Body of ``/v1/completions``."""

    prompt: str | list[str | Int64 | list[Int64]]
    echo: bool | None = None
    logprobs: Count = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


class ChatBody(SharedBody, kw_only=True):
    """Body of ``/v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: Limit = None
    logprobs: bool | None = None
    top_logprobs: Count = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | float | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    separate_reasoning: bool | None = None
    tools: list[Tool] | None = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    thinking: Thinking | None = None
    thinking_budget: Count = None
    thinking_token_budget: Count = None
    max_thinking_tokens: Count = None


class OpenAICall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body.

    Attributes:
        id: Of the answer; the caller can abort by it.
        model: As the caller named it, for the answer.
        requests: One a prompt.
        logprobs: Alternatives wanted at each token, or None.
        prompt_logprobs: Likewise, at each token of the prompt.
        speech: Which parts of the answers are separated; None: none.
    """

    id: str
    model: str
    requests: list[GenerateRequest]
    is_streamed: bool
    logprobs: int | None = None
    echo: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    wants_ids: bool = False
    prompt_logprobs: int | None = None
    speech: Speech | None = None
