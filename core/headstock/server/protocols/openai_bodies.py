"""Bodies of the OpenAI routes, and how they become requests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec

from headstock.errors import RequestError
from headstock.requests import SamplingParams
from headstock.requests.sampling import Int64, Priority
from headstock.server.model_card import ModelCard
from headstock.server.protocols.messages import (
    ChatMessage,
    Tool,
    flat_messages,
    read_tools,
    speech_of,
    thinking_variables,
)
from headstock.server.protocols.native import MAX_PROMPTS, id_rows
from headstock.server.protocols.parameters import (
    CHANGE_ANSWERS,
    join_namespace,
    not_yet,
    refuse_set,
    to_params,
)
from headstock.server.request import ChatPrompt, GenerateRequest, Prompt, TextPrompt, TokensPrompt
from headstock.server.speech import PLAIN, Dialect, Speech

MAX_CHOICE_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16
_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "input_ids": "prompt",
}
_SHARED = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "stop", "stop_token_ids", "stop_regex", "ignore_eos", "no_stop_trim",
    "include_stop_str_in_output", "skip_special_tokens", "logit_bias", "n",
)  # fmt: skip
_REFUSED = (
    "json_schema", "regex", "ebnf", "lora_path", "session_params", "custom_params",
    "custom_logit_processor", "watermark", "return_hidden_states", "return_routed_experts",
)  # fmt: skip
_CHAT_REFUSED = (
    *_REFUSED, "functions", "audio", "prediction", "web_search_options",
)  # fmt: skip

Stop = str | list[str] | None
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None
Limit = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None
"""-1: as many as there can be."""


class StreamOptions(msgspec.Struct):
    """What a stream carries beside its tokens."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Thinking(msgspec.Struct):
    """Whether a model that can think before it answers does so."""

    type: str


class ResponseFormat(msgspec.Struct):
    """The form of the answer; only ``text`` is supported."""

    type: str


class SharedBody(msgspec.Struct, kw_only=True):
    """What chats and completions have in common; unknown keys are told back, not honoured."""

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
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    rid: str | None = None
    priority: Priority | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    user: str | None = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    lora_path: Any = None
    session_id: Any = None
    session_params: Any = None
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


class OpenAICall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body.

    Attributes:
        id: Of the answer; the caller can abort by it.
        model: As the caller named it, for the answer.
        requests: One a prompt.
        logprobs: Alternatives wanted at each token, or None.
        prompt_logprobs: Likewise, at each token of the prompt.
        speech: What is told apart in the answers; None: nothing.
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


def read_completion(body: CompletionBody, card: ModelCard, tenant: str = "") -> OpenAICall:
    """Turn a body of ``/v1/completions`` into requests.

    Args:
        body: As it was sent.
        card: The served model, for its name and defaults.
        tenant: Prefix of the cache namespace.

    Raises:
        RequestError: Naming the field at fault.
    """
    _check_shared(body, card)
    refuse_set(body, _REFUSED)
    if body.suffix:
        raise not_yet("suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise not_yet("best_of")
    logprobs = _check_logprobs("logprobs", body.logprobs)
    call_id = _call_id(body, "cmpl")
    limit = None if body.max_tokens == -1 else body.max_tokens
    params = to_params(
        _given(body, limit),
        defaults={"max_new_tokens": DEFAULT_COMPLETION_TOKENS, **card.sampling_defaults},
        names=_NAMES,
    )
    if body.max_tokens == -1:
        params = msgspec.structs.replace(params, max_new_tokens=None)
    prompts = _prompts(body.prompt, body.add_special_tokens is not False)
    requests = [
        GenerateRequest(
            prompt=prompt,
            params=params,
            rid=call_id if len(prompts) == 1 else f"{call_id}-{index}",
            is_clipped=body.max_tokens is None,
            logprobs=_most(logprobs, body.prompt_logprobs),
            prompt_logprobs_from=0
            if (body.echo and logprobs is not None) or body.prompt_logprobs is not None
            else None,
            namespace=_namespace(body, tenant),
            priority=body.priority or 0,
            names=_NAMES,
            keep_last=_keep_last(body, limit, card),
        )
        for index, prompt in enumerate(prompts)
    ]
    return _call(body, call_id, card, requests, logprobs, echo=bool(body.echo))


def read_chat(
    body: ChatBody, card: ModelCard, dialect: Dialect = PLAIN, tenant: str = ""
) -> OpenAICall:
    """Turn a body of ``/v1/chat/completions`` into one request.

    Args:
        body: As it was sent.
        card: The served model, for its name and defaults.
        dialect: How it writes thoughts and calls.
        tenant: Prefix of the cache namespace.

    Raises:
        RequestError: Naming the field at fault.
    """
    _check_shared(body, card)
    _check_chat(body)
    tools = [] if body.tool_choice == "none" else read_tools(body.tools)
    speech = speech_of(
        dialect,
        tools,
        separates=body.separate_reasoning is not False,
        has_parallel_calls=body.parallel_tool_calls is not False,
        is_continued=bool(body.continue_final_message),
    )
    if body.best_of is not None:
        raise not_yet("best_of")
    logprobs = _check_logprobs("top_logprobs", body.top_logprobs)
    if logprobs is not None and not body.logprobs:
        raise RequestError(
            f"top_logprobs is {logprobs} and logprobs is not true.",
            remedy="Set logprobs to true.",
            field="top_logprobs",
        )
    if body.logprobs:
        logprobs = logprobs or 0
    is_new_name = body.max_completion_tokens is not None
    limit = body.max_completion_tokens if is_new_name else body.max_tokens
    limit = None if limit == -1 else limit
    length_field = "max_completion_tokens" if is_new_name else "max_tokens"
    names = {**_NAMES, "max_new_tokens": length_field, "input_ids": "messages"}
    params = to_params(_given(body, limit), defaults=card.sampling_defaults, names=names)
    # No limit of the caller's: as many as the context holds, not the native default.
    params = spoken(msgspec.structs.replace(params, max_new_tokens=limit), speech, dialect)
    call_id = _call_id(body, "chatcmpl")
    request = GenerateRequest(
        prompt=_chat_prompt(body, tools, dialect),
        params=params,
        rid=call_id,
        logprobs=_most(logprobs, body.prompt_logprobs),
        prompt_logprobs_from=None if body.prompt_logprobs is None else 0,
        namespace=_namespace(body, tenant),
        priority=body.priority or 0,
        names=names,
        keep_last=_keep_last(body, limit, card),
    )
    return _call(body, call_id, card, [request], logprobs, speech=speech)


def spoken(params: SamplingParams, speech: Speech | None, dialect: Dialect) -> SamplingParams:
    """Return ``params`` such that the text has the marks by which its parts are told."""
    if speech is None or not dialect.has_special_marks:
        return params
    return msgspec.structs.replace(params, skip_special_tokens=False)


def _check_chat(body: ChatBody) -> None:
    refuse_set(body, _CHAT_REFUSED)
    if body.tool_choice not in (None, "none", "auto"):
        raise not_yet("tool_choice", "A tool_choice other than none and auto")
    if body.function_call not in (None, "none", "auto"):
        raise not_yet("function_call")
    if body.modalities not in (None, [], ["text"]):
        raise not_yet("modalities", f"modalities {body.modalities}")


def _most(*counts: int | None) -> int:
    """Return the largest of ``counts``, -1 where there is none."""
    return max((count for count in counts if count is not None), default=-1)


def _keep_last(body: SharedBody, limit: int | None, card: ModelCard) -> int | None:
    """Return how many of the prompt's last tokens ``truncate_prompt_tokens`` keeps."""
    wanted = body.truncate_prompt_tokens
    if wanted == -1:
        return max(1, card.max_length - (limit or 1))
    if wanted == 0:
        raise RequestError(
            "truncate_prompt_tokens is 0.",
            remedy="Keep at least one token, or -1 for as many as fit.",
            field="truncate_prompt_tokens",
        )
    return wanted


def check_model(name: str | None, card: ModelCard) -> None:
    """Refuse a model that is not the served one.

    Raises:
        RequestError: ``name`` is another's; "default" and none at all are fine.
    """
    if name not in (None, "", "default", card.name):
        raise unknown_model(name or "", card)


def unknown_model(name: str, card: ModelCard) -> RequestError:
    """Return the error for a model that this server does not have."""
    return RequestError(
        f"The model {name[:128]!r} does not exist; this server has {card.name!r}.",
        remedy="Use its name, or leave model out.",
        field="model",
        code="model_not_found",
    )


def _chat_prompt(body: ChatBody, tools: list[dict[str, Any]], dialect: Dialect) -> ChatPrompt:
    is_thinking = None if body.thinking is None else body.thinking.type != "disabled"
    if is_thinking and dialect.reasoning is None:
        raise not_yet("thinking", "thinking, with a model whose chat template has none,")
    extra = thinking_variables(is_thinking) | dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        extra["reasoning_effort"] = body.reasoning_effort
    return ChatPrompt(
        flat_messages(body.messages, dialect),
        tools=tools,
        extra=extra,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=bool(body.continue_final_message),
    )


def _check_shared(body: SharedBody, card: ModelCard) -> None:
    check_model(body.model, card)
    if body.response_format is not None and body.response_format.type != "text":
        kind = body.response_format.type[:64]
        raise not_yet("response_format", f"response_format of type {kind!r}")
    _check_logprobs("prompt_logprobs", body.prompt_logprobs)
    if body.prompt_logprobs is not None and body.stream:
        raise RequestError(
            "prompt_logprobs is set and stream is true.",
            remedy="Set one of them; a stream has no place for the prompt.",
            field="prompt_logprobs",
            code="not_supported",
        )
    if body.stream_options is not None and not body.stream:
        raise RequestError(
            "stream_options is set and stream is not true.",
            remedy="Set stream to true, or leave stream_options out.",
            field="stream_options",
        )


def _given(body: SharedBody, limit: int | None) -> Mapping[str, Any]:
    given = {name: getattr(body, name) for name in _SHARED}
    given["max_new_tokens"] = limit
    given["min_new_tokens"] = body.min_tokens
    given["sampling_seed"] = body.seed
    return given


def _check_logprobs(field: str, value: int | None) -> int | None:
    if value is not None and value > MAX_CHOICE_LOGPROBS:
        raise RequestError(
            f"{field} is {value}; at most {MAX_CHOICE_LOGPROBS}.",
            remedy="Ask for fewer.",
            field=field,
        )
    return value


def _prompts(prompt: str | list[str | int | list[int]], add_special_tokens: bool) -> list[Prompt]:
    if isinstance(prompt, str):
        return [TextPrompt(prompt, add_special_tokens)]
    texts = [item for item in prompt if isinstance(item, str)]
    prompts: list[Prompt]
    if texts:
        if len(texts) != len(prompt):
            raise RequestError(
                "prompt mixes text and token ids.",
                remedy="Send one kind.",
                field="prompt",
                code="invalid_type",
            )
        prompts = [TextPrompt(text, add_special_tokens) for text in texts]
    else:
        rows, _ = id_rows("prompt", [item for item in prompt if not isinstance(item, str)])
        prompts = [TokensPrompt(row) for row in rows]
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(
            f"prompt has {len(prompts)} items; at most {MAX_PROMPTS}.",
            remedy="Send several requests.",
            field="prompt",
        )
    return prompts


def _call_id(body: SharedBody, prefix: str) -> str:
    if body.rid is None:
        return f"{prefix}-{uuid.uuid4().hex}"
    if not 0 < len(body.rid) <= 128:
        raise RequestError(
            f"rid has {len(body.rid)} characters; 1 to 128 are allowed.",
            remedy="Use a shorter one.",
            field="rid",
        )
    return body.rid


def _namespace(body: SharedBody, tenant: str) -> str:
    return join_namespace(tenant, body.extra_key, body.cache_salt)


def _call(
    body: SharedBody,
    call_id: str,
    card: ModelCard,
    requests: list[GenerateRequest],
    logprobs: int | None,
    *,
    echo: bool = False,
    speech: Speech | None = None,
) -> OpenAICall:
    options = body.stream_options or StreamOptions()
    return OpenAICall(
        id=call_id,
        model=card.name,
        requests=requests,
        is_streamed=bool(body.stream),
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        speech=speech,
        echo=echo,
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        wants_ids=bool(body.return_token_ids),
    )
