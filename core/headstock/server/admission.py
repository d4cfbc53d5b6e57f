"""The one validator: a request and its prompt's tokens to what the engine is asked."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence

import msgspec

from headstock.errors import RequestError
from headstock.requests import Grammar, SamplingParams, TokenIds
from headstock.requests.sampling import check_token_id
from headstock.server.model_card import ModelCard
from headstock.server.payers import NAMELESS, Payer
from headstock.server.prompter import too_long
from headstock.server.request import GenerateRequest, TokensPrompt
from headstock.structured.checks import check_grammar
from headstock.text import Tokenizer
from headstock.wire.media import MediaItem
from headstock.wire.messages import Submit
from headstock.wire.requests import ThoughtLimit

_SEED_SPAN = 2**63
MAX_USER = 128
"""Characters by which the users of a key are distinguished."""


_TASKS = {
    "generate": ("generates text", "/v1/chat/completions, /v1/completions and /generate"),
    "embed": ("embeds texts", "/v1/embeddings, /encode and /v1/score"),
    "classify": ("classifies texts", "/classify, /v1/score and /v1/rerank"),
}


def check_task(request: GenerateRequest, card: ModelCard) -> None:
    """Refuse a request for tokens to a model that yields vectors, and the other way round.

    Raises:
        RequestError: Naming what the model is served for.
    """
    if request.pool in (card.pools or [""]):
        return
    does, routes = _TASKS[card.task]
    if request.pool and card.pools:
        raise RequestError(
            f"The request asks for {request.pool!r}; the model {card.name!r} yields"
            f" {', '.join(card.pools)}.",
            remedy="Use /pooling with a task that it has, or another model.",
            field="task",
            code="not_supported",
        )
    asked = "a vector or scores" if request.pool else "text"
    raise RequestError(
        f"The request asks for {asked}; the model {card.name!r} {does} (task {card.task}).",
        remedy=f"Use {routes}, or another model.",
        field="model",
        code="not_supported",
    )


def expand(
    request: GenerateRequest,
    prompt_ids: list[int],
    card: ModelCard,
    max_length: int,
    adapter: str = "",
    tokenizer: Tokenizer | None = None,
    media: Sequence[MediaItem] = (),
    payer: Payer = NAMELESS,
) -> list[Submit]:
    """Check ``request`` and return ``params.n`` messages for the engine, each with its own seed.

    Args:
        request: What was asked.
        prompt_ids: The prompt's tokens.
        card: The served model.
        max_length: Longest request the engine holds, prompt and output. Tokens.
        adapter: Generation id of its LoRA adapter; "": none.
        tokenizer: For words that the output must not have.
        media: The prompt's images.
        payer: Whose account it counts against.

    Raises:
        RequestError: Naming the field, its value and the limit.
    """
    prompt_ids = _ending(_kept(request, prompt_ids, has_media=bool(media)), card.last_id)
    params = _params(request, card)
    grammar = _grammar(request, prompt_ids, card, tokenizer)
    # The length first: ids are looked at one by one, and there may be millions of them.
    limit = _output_limit(request, params.max_new_tokens, len(prompt_ids), max_length)
    _check_ids(request, prompt_ids, card.vocab_size)
    kept_ids = TokenIds(prompt_ids)
    stop_ids = [] if request.pool else _stop_ids(params, card)  # a vector has no end to find
    check_allowed(request, stop_ids, card.vocab_size)
    banned = bad_word_ids(request.bad_words, tokenizer)
    thoughts = _thoughts(request, prompt_ids, tokenizer)
    return [
        Submit(
            id=uuid.uuid4().hex,
            prompt_ids=kept_ids,
            params=lane,
            stop_ids=stop_ids,
            namespace=request.namespace,
            priority=request.priority,
            payer=payer.id,
            share=payer.limits.share,
            user=(request.user or payer.user)[:MAX_USER],
            logprobs=request.logprobs,
            prompt_logprobs_from=request.prompt_logprobs_from,
            asked_ids=request.asked_ids,
            grammar=grammar,
            pool=request.pool,
            adapter=adapter,
            allowed_ids=request.allowed_token_ids,
            banned=banned,
            thoughts=thoughts,
            media=list(media),
        )
        for lane in _lanes(params, limit)
    ]


def _ending(prompt_ids: list[int], last_id: int | None) -> list[int]:
    """Return the tokens of a prompt that ends in ``last_id``, if the model wants that."""
    if last_id is None or prompt_ids[-1:] == [last_id]:
        return prompt_ids
    return [*prompt_ids, last_id]


def _stop_ids(params: SamplingParams, card: ModelCard) -> list[int]:
    """Return the ids that end the output."""
    eos_ids = [] if params.ignore_eos else card.eos_ids
    return list(dict.fromkeys([*eos_ids, *params.stop_token_ids]))


def _kept(request: GenerateRequest, prompt_ids: list[int], *, has_media: bool) -> list[int]:
    """Return the tokens of the prompt that are to be kept: the last ones."""
    if request.keep_last is None or len(prompt_ids) <= request.keep_last:
        return prompt_ids
    if has_media:
        raise RequestError(
            f"The prompt has {len(prompt_ids)} tokens, of which {request.keep_last} are to be"
            " kept, and images, which are not cut.",
            remedy="Shorten the prompt.",
            field=request.called("input_ids"),
            code="not_supported",
        )
    return prompt_ids[-request.keep_last :]


def _grammar(
    request: GenerateRequest, prompt_ids: list[int], card: ModelCard, tokenizer: Tokenizer | None
) -> Grammar | None:
    """Return what the output must look like: the caller's grammar, and that of its calls."""
    grammar = request.grammar
    if request.speech is not None and tokenizer is not None:
        grammar = request.speech.grammar(grammar, prompt_ids, tokenizer, card.eos_ids)
    if grammar is not None:
        check_grammar(grammar)
    return grammar


def _thoughts(
    request: GenerateRequest, prompt_ids: list[int], tokenizer: Tokenizer | None
) -> ThoughtLimit | None:
    """Return how long it may think; None: without end."""
    if request.thoughts is None or tokenizer is None:
        return None
    return request.thoughts.limit(prompt_ids, tokenizer)


def _lanes(params: SamplingParams, limit: int) -> list[SamplingParams]:
    """Return the parameters of each completion, with a seed of its own.

    It is derived from the request's, or drawn here where it has none, so that sending a completion
    again draws the same numbers.
    """
    seed = params.sampling_seed
    if seed is None:
        seed = secrets.randbits(63)
    return [
        msgspec.structs.replace(
            params,
            n=1,
            max_new_tokens=limit,
            min_new_tokens=min(params.min_new_tokens, limit),
            sampling_seed=_wrap(seed + lane),
        )
        for lane in range(params.n)
    ]


def _params(request: GenerateRequest, card: ModelCard) -> SamplingParams:
    """Return the checked parameters; a request for a vector draws no token."""
    params = _known_stops(request.params, card.vocab_size)
    params.check(card.vocab_size, request.names)
    return msgspec.structs.replace(params, max_new_tokens=0) if request.pool else params


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


def _output_limit(
    request: GenerateRequest, wanted: int | None, num_prompt: int, max_length: int
) -> int:
    """Return how many tokens may be generated."""
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


MAX_BAD_WORDS = 128
MAX_WORD = 256
"""Characters of a bad word."""


def check_allowed(request: GenerateRequest, stop_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that the model does not have, and lists by which nothing could be drawn.

    Raises:
        RequestError: Naming the field.
    """
    allowed = request.allowed_token_ids
    if not allowed:
        return
    check_token_id("allowed_token_ids", min(allowed), vocab_size)
    check_token_id("allowed_token_ids", max(allowed), vocab_size)
    low = request.params.min_new_tokens
    if low > 0 and set(allowed) <= set(stop_ids):
        name = request.called("min_new_tokens")
        raise RequestError(
            f"allowed_token_ids has only ids that end the output, and {name} is {low}.",
            remedy=f"Allow other ids, or set {name} to 0.",
            field="allowed_token_ids",
        )


def bad_word_ids(words: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Return the ids by which ``words`` would be written: at a beginning, and after a blank.

    A word that the model writes in other pieces is not found: that is how this field is defined.

    Raises:
        RequestError: There are too many, one is empty or too long, or there is no tokenizer.
    """
    if not words:
        return []
    if tokenizer is None:
        raise _wrong("needs text, and this server was started without a tokenizer", "Leave it out.")
    if len(words) > MAX_BAD_WORDS:
        raise _wrong(f"has {len(words)} items; at most {MAX_BAD_WORDS}", "Send fewer.")
    found: list[list[int]] = []
    for word in words:
        if not word.strip() or len(word) > MAX_WORD:
            remedy = f"Give words of 1 to {MAX_WORD} characters."
            raise _wrong(f"has {word[:32]!r}, of {len(word)} characters", remedy)
        bare = tokenizer.encode(word, add_special_tokens=False)
        found.append(bare)
        after_blank = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        # A blank of its own is no part of the word: without it the word is banned already.
        if len(after_blank) == len(bare) and after_blank[0] != bare[0]:
            found.append(after_blank)
    return [ids for ids in found if ids]


def _wrong(what: str, remedy: str) -> RequestError:
    return RequestError(f"bad_words {what}.", remedy=remedy, field="bad_words")
