"""How bodies of the OpenAI routes become requests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.server.model_card import ModelCard
from headstock.server.protocols.choices import read_choice
from headstock.server.protocols.grammars import openai_grammar
from headstock.server.protocols.messages import (
    effort_variables,
    flat_messages,
    read_tools,
    speech_of,
    spoken,
    strict_names,
    thinking_variables,
)
from headstock.server.protocols.native_bodies import MAX_PROMPTS, id_rows
from headstock.server.protocols.openai_bodies import (
    DEFAULT_COMPLETION_TOKENS,
    ChatBody,
    CompletionBody,
    OpenAICall,
    SharedBody,
    StreamOptions,
)
from headstock.server.protocols.parameters import (
    check_model,
    join_namespace,
    not_yet,
    refuse_set,
    to_params,
)
from headstock.server.request import ChatPrompt, GenerateRequest, Prompt, TextPrompt, TokensPrompt
from headstock.server.speech import PLAIN, Dialect, Speech
from headstock.server.thought_budget import BUDGETS, read_budget

MAX_CHOICE_LOGPROBS = 20
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
    "custom_params", "custom_logit_processor", "watermark", "return_hidden_states",
    "return_routed_experts",
)  # fmt: skip
_CHAT_REFUSED = (
    *_REFUSED, "functions", "audio", "prediction", "web_search_options",
)  # fmt: skip


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
    grammar = openai_grammar(body)
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
            user=body.safety_identifier or body.user or "",
            names=_NAMES,
            keep_last=_keep_last(body, limit, card),
            grammar=grammar,
            adapter=card.adapter,
            allowed_token_ids=body.allowed_token_ids or [],
            bad_words=body.bad_words or [],
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
    choice = read_choice(body.tool_choice)
    tools = [] if choice.is_off else read_tools(body.tools)
    speech = speech_of(
        dialect,
        tools,
        choice=choice,
        strict=strict_names(body.tools),
        separates=body.separate_reasoning is not False,
        has_parallel_calls=body.parallel_tool_calls is not False,
        is_continued=bool(body.continue_final_message),
    )
    if body.best_of is not None:
        raise not_yet("best_of")
    logprobs = _chat_logprobs(body)
    limit, length_field = _chat_limit(body)
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
        user=body.safety_identifier or body.user or "",
        names=names,
        keep_last=_keep_last(body, limit, card),
        grammar=openai_grammar(body),
        adapter=card.adapter,
        allowed_token_ids=body.allowed_token_ids or [],
        bad_words=body.bad_words or [],
        speech=speech,
        thoughts=read_budget(
            dialect.reasoning,
            [(name, getattr(body, name)) for name in BUDGETS],
            body.thinking,
            is_continued=bool(body.continue_final_message),
        ),
    )
    return _call(body, call_id, card, [request], logprobs, speech=speech)


def _chat_logprobs(body: ChatBody) -> int | None:
    """Return how many logprobs a chat asks for at each token; None: not even the drawn one's."""
    count = _check_logprobs("top_logprobs", body.top_logprobs)
    if count is not None and not body.logprobs:
        raise RequestError(
            f"top_logprobs is {count} and logprobs is not true.",
            remedy="Set logprobs to true.",
            field="top_logprobs",
        )
    return (count or 0) if body.logprobs else None


def _chat_limit(body: ChatBody) -> tuple[int | None, str]:
    """Return how many tokens a chat may have, None: as many as fit; and the field that said so."""
    if body.max_completion_tokens is not None:
        limit, field = body.max_completion_tokens, "max_completion_tokens"
    else:
        limit, field = body.max_tokens, "max_tokens"
    return (None if limit == -1 else limit), field


def _check_chat(body: ChatBody) -> None:
    refuse_set(body, _CHAT_REFUSED)
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


def _chat_prompt(body: ChatBody, tools: list[dict[str, Any]], dialect: Dialect) -> ChatPrompt:
    is_thinking = None if body.thinking is None else body.thinking.type != "disabled"
    if is_thinking and dialect.reasoning is None:
        raise not_yet("thinking", "thinking, with a model whose chat template has none,")
    extra = thinking_variables(is_thinking) | effort_variables(body.reasoning_effort)
    extra |= body.chat_template_kwargs or {}
    images: list[Source] = []
    return ChatPrompt(
        flat_messages(body.messages, dialect, images),
        images=images,
        tools=tools,
        extra=extra,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=bool(body.continue_final_message),
    )


def _check_shared(body: SharedBody, card: ModelCard) -> None:
    check_model(body.model, card)
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
    if texts:
        if len(texts) != len(prompt):
            raise RequestError(
                "prompt mixes text and token ids.",
                remedy="Send one kind.",
                field="prompt",
                code="invalid_type",
            )
        _check_count(len(texts))
        return [TextPrompt(text, add_special_tokens) for text in texts]
    rows, _ = id_rows("prompt", [item for item in prompt if not isinstance(item, str)])
    _check_count(len(rows))
    return [TokensPrompt(row) for row in rows]


def _check_count(num_prompts: int) -> None:
    if num_prompts > MAX_PROMPTS:
        raise RequestError(
            f"prompt has {num_prompts} items; at most {MAX_PROMPTS}.",
            remedy="Send several requests.",
            field="prompt",
        )


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
