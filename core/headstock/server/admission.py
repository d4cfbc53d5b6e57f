"""The one validator: a request and its prompt's tokens to what the engine is asked."""

from __future__ import annotations

import secrets
import uuid

import msgspec

from headstock.errors import RequestError
from headstock.requests import SamplingParams
from headstock.requests.sampling import check_token_id
from headstock.server.model_card import ModelCard
from headstock.server.prompter import too_long
from headstock.server.request import GenerateRequest, TokensPrompt
from headstock.structured.checks import check_grammar
from headstock.wire.messages import Submit

_SEED_SPAN = 2**63


def expand(
    request: GenerateRequest, prompt_ids: list[int], card: ModelCard, max_length: int
) -> list[Submit]:
    """Check ``request`` and return ``params.n`` messages for the engine.

    Each has its own seed, derived from the request's, or drawn here where it has none, so that
    sending it again draws the same numbers.

    Args:
        request: What was asked.
        prompt_ids: The prompt's tokens.
        card: The served model.
        max_length: Longest request the engine holds, prompt and output. Tokens.

    Raises:
        RequestError: Naming the field, its value and the limit.
    """
    if request.keep_last is not None:
        prompt_ids = prompt_ids[-request.keep_last :]
    params = _known_stops(request.params, card.vocab_size)
    params.check(card.vocab_size, request.names)
    if request.grammar is not None:
        check_grammar(request.grammar)
    _check_ids(request, prompt_ids, card.vocab_size)
    limit = _output_limit(request, len(prompt_ids), max_length)
    eos_ids = [] if params.ignore_eos else card.eos_ids
    stop_ids = list(dict.fromkeys([*eos_ids, *params.stop_token_ids]))
    seed = params.sampling_seed
    if seed is None:
        seed = secrets.randbits(63)
    return [
        Submit(
            id=uuid.uuid4().hex,
            prompt_ids=prompt_ids,
            params=msgspec.structs.replace(
                params,
                n=1,
                max_new_tokens=limit,
                min_new_tokens=min(params.min_new_tokens, limit),
                sampling_seed=_wrap(seed + lane),
            ),
            stop_ids=stop_ids,
            namespace=request.namespace,
            priority=request.priority,
            logprobs=request.logprobs,
            prompt_logprobs_from=request.prompt_logprobs_from,
            asked_ids=request.asked_ids,
            grammar=request.grammar,
        )
        for lane in range(params.n)
    ]


def _known_stops(params: SamplingParams, vocab_size: int) -> SamplingParams:
    """Return ``params`` without stop ids that the model cannot draw: clients send fixed lists."""
    known = [token_id for token_id in params.stop_token_ids if token_id < vocab_size]
    if len(known) == len(params.stop_token_ids):
        return params
    return msgspec.structs.replace(params, stop_token_ids=known)


def check_text(request: GenerateRequest, *, has_tokenizer: bool) -> None:
    """Refuse stops that need text where there is none.

    Raises:
        RequestError: Naming the field.
    """
    params = request.params
    if not has_tokenizer and (params.stop or params.stop_regex):
        raise RequestError(
            "stop needs text, and this server was started without a tokenizer.",
            remedy="Use stop_token_ids.",
            field="stop" if params.stop else "stop_regex",
        )


def _check_ids(request: GenerateRequest, prompt_ids: list[int], vocab_size: int) -> None:
    if not prompt_ids:
        raise RequestError(
            "The prompt has 0 tokens.", remedy="Give at least one.", code="empty_prompt"
        )
    if isinstance(request.prompt, TokensPrompt):
        check_token_id(request.called("input_ids"), min(prompt_ids), vocab_size)
        check_token_id(request.called("input_ids"), max(prompt_ids), vocab_size)
    for token_id in request.asked_ids:
        check_token_id("token_ids_logprob", token_id, vocab_size)
    start = request.prompt_logprobs_from
    if start is not None and not 0 <= start < len(prompt_ids):
        raise RequestError(
            f"logprob_start_len is {start}; the prompt has {len(prompt_ids)} tokens.",
            remedy="Use -1 for output only, or a position of the prompt.",
            field="logprob_start_len",
        )


def _output_limit(request: GenerateRequest, num_prompt: int, max_length: int) -> int:
    """Return how many tokens may be generated."""
    wanted = request.params.max_new_tokens
    room = max_length - num_prompt
    if room < 0:
        raise too_long(num_prompt, max_length)
    if room == 0 and wanted != 0:
        raise RequestError(
            f"The input has {num_prompt} tokens, the model's whole context length: no room is left"
            " for an output.",
            remedy=f"Shorten the prompt, or set {request.called('max_new_tokens')} to 0.",
            field=request.called("input_ids"),
            code="context_length_exceeded",
        )
    if wanted is None:
        return room
    if wanted <= room:
        return wanted
    if request.is_clipped:
        return room
    length_field = request.called("max_new_tokens")
    if wanted > max_length and length_field == "max_completion_tokens":
        raise RequestError(
            f"max_completion_tokens is too large: {wanted}. This model supports at most"
            f" {max_length} tokens in all, and the messages have {num_prompt}.",
            remedy=f"Ask for at most {room}.",
            field=length_field,
            code="context_length_exceeded",
        )
    raise RequestError(
        "Requested token count exceeds the model's maximum context length of"
        f" {max_length} tokens. You requested a total of {num_prompt + wanted} tokens:"
        f" {num_prompt} tokens from the input and {wanted} tokens for the completion.",
        remedy=f"Shorten the prompt, or ask for at most {room}.",
        field=length_field,
        code="context_length_exceeded",
    )


def _wrap(seed: int) -> int:
    """Return ``seed`` as a signed 64-bit number."""
    return (seed + _SEED_SPAN) % (2 * _SEED_SPAN) - _SEED_SPAN
