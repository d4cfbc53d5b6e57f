"""Bodies of the OpenAI routes, and how they become requests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from headstock.errors import RequestError
from headstock.requests.sampling import Int64, Priority
from headstock.server.model_card import ModelCard
from headstock.server.protocols.grammars import ResponseFormat, openai_grammar
from headstock.server.protocols.native import MAX_PROMPTS, id_rows
from headstock.server.protocols.parameters import not_yet, refuse_set, to_params
from headstock.server.request import ChatPrompt, GenerateRequest, Prompt, TextPrompt, TokensPrompt

MAX_MESSAGES = 2048
MAX_CHOICE_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16
_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
_SHARED = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "stop", "stop_token_ids", "stop_regex", "ignore_eos", "no_stop_trim",
    "skip_special_tokens", "logit_bias", "n",
)  # fmt: skip
_REFUSED = (
    "lora_path", "session_id", "session_params", "custom_params",
    "custom_logit_processor", "watermark", "return_hidden_states", "return_routed_experts",
)  # fmt: skip
_CHAT_REFUSED = (
    *_REFUSED, "tools", "functions", "function_call", "modalities", "audio", "prediction",
    "web_search_options", "thinking",
)  # fmt: skip

Stop = str | list[str] | None
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None


class StreamOptions(msgspec.Struct):
    """What a stream carries beside its tokens."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SharedBody(msgspec.Struct, kw_only=True):
    """What chats and completions have in common; unknown keys are ignored."""

    model: str | None = None
    max_tokens: Count = None
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
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
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


class ContentPart(msgspec.Struct):
    """A part of a message; only text is supported."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, omit_defaults=True):
    """One message of a chat."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: Any = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ChatBody(SharedBody, kw_only=True):
    """Body of ``/v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: Count = None
    logprobs: bool | None = None
    top_logprobs: Count = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | float | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    thinking: Any = None


class OpenAICall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body.

    Attributes:
        id: Of the answer; the caller can abort by it.
        model: As the caller named it, for the answer.
        requests: One a prompt.
        logprobs: Alternatives wanted at each token, or None.
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
    params = to_params(
        _given(body, body.max_tokens),
        defaults={"max_new_tokens": DEFAULT_COMPLETION_TOKENS, **card.sampling_defaults},
        names=_NAMES,
    )
    grammar = openai_grammar(body)
    prompts = _prompts(body.prompt)
    requests = [
        GenerateRequest(
            prompt=prompt,
            params=params,
            rid=call_id if len(prompts) == 1 else f"{call_id}-{index}",
            is_clipped=body.max_tokens is None,
            logprobs=-1 if logprobs is None else logprobs,
            prompt_logprobs_from=0 if body.echo and logprobs is not None else None,
            namespace=_namespace(body, tenant),
            priority=body.priority or 0,
            length_field="max_tokens",
            grammar=grammar,
        )
        for index, prompt in enumerate(prompts)
    ]
    return _call(body, call_id, card, requests, logprobs, echo=bool(body.echo))


def read_chat(body: ChatBody, card: ModelCard, tenant: str = "") -> OpenAICall:
    """Turn a body of ``/v1/chat/completions`` into one request.

    Args:
        body: As it was sent.
        card: The served model, for its name and defaults.
        tenant: Prefix of the cache namespace.

    Raises:
        RequestError: Naming the field at fault.
    """
    _check_shared(body, card)
    refuse_set(body, _CHAT_REFUSED)
    if body.tool_choice not in (None, "none", "auto"):
        raise not_yet("tool_choice")
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
    length_field = "max_completion_tokens" if is_new_name else "max_tokens"
    # No limit of the caller's: as many as the context holds, not the native default.
    params = msgspec.structs.replace(
        to_params(
            _given(body, limit),
            defaults=card.sampling_defaults,
            names={**_NAMES, "max_new_tokens": length_field},
        ),
        max_new_tokens=limit,
    )
    call_id = _call_id(body, "chatcmpl")
    request = GenerateRequest(
        prompt=_chat_prompt(body),
        params=params,
        rid=call_id,
        logprobs=-1 if logprobs is None else logprobs,
        namespace=_namespace(body, tenant),
        priority=body.priority or 0,
        length_field=length_field,
        grammar=openai_grammar(body),
    )
    return _call(body, call_id, card, [request], logprobs)


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


def flat_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as templates read them: content is one string.

    Raises:
        RequestError: There are too many, or one has a part that is not text.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(
            f"messages has {len(messages)} items; 1 to {MAX_MESSAGES} are allowed.",
            remedy="Send at least one message, and drop old ones.",
            field="messages",
        )
    return [_flat(index, message) for index, message in enumerate(messages)]


def _flat(index: int, message: ChatMessage) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.role not in ("system", "developer", "user", "assistant", "tool"):
        raise RequestError(
            f"{where}.role is {message.role[:64]!r}.",
            remedy="Use system, developer, user or assistant.",
            field="messages",
        )
    if message.tool_calls or message.role == "tool":
        raise not_yet(f"{where}.tool_calls" if message.tool_calls else f"{where}.role 'tool'")
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise not_yet(f"{where}.content of type {part.type[:64]!r}")
        content = [{"type": "text", "text": part.text} for part in content]
    if content is None and message.role != "assistant":
        raise RequestError(f"{where}.content is null.", remedy="Give text.", field="messages")
    flat: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.name is not None:
        flat["name"] = message.name
    if message.reasoning_content is not None:
        flat["reasoning_content"] = message.reasoning_content
    return flat


def _chat_prompt(body: ChatBody) -> ChatPrompt:
    extra = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        extra["reasoning_effort"] = body.reasoning_effort
    return ChatPrompt(
        flat_messages(body.messages),
        extra=extra,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=bool(body.continue_final_message),
    )


def _check_shared(body: SharedBody, card: ModelCard) -> None:
    check_model(body.model, card)
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


def _prompts(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [TextPrompt(prompt)]
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
        prompts = [TextPrompt(text) for text in texts]
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
    return f"{tenant}{body.extra_key or ''}{body.cache_salt or ''}"


def _call(
    body: SharedBody,
    call_id: str,
    card: ModelCard,
    requests: list[GenerateRequest],
    logprobs: int | None,
    *,
    echo: bool = False,
) -> OpenAICall:
    options = body.stream_options or StreamOptions()
    return OpenAICall(
        id=call_id,
        model=card.name,
        requests=requests,
        is_streamed=bool(body.stream),
        logprobs=logprobs,
        echo=echo,
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        wants_ids=bool(body.return_token_ids),
    )
