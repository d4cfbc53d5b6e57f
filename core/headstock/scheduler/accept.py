"""Which requests can be served at all, and under what limits."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.config.exclusions import MASKS, SPECULATION, off_for
from headstock.errors import RequestError
from headstock.requests.sampling import check_token_id
from headstock.scheduler.media_checks import check_media
from headstock.scheduler.request import Request
from headstock.wire.messages import Submit
from headstock.wire.steps import DRAW, POOLED, RunnerLimits

NO_DRAFTS = off_for(SPECULATION)
"""What a request may ask that makes its rows plain ones."""


def accept(
    submit: Submit,
    *,
    arrival: int,
    now_s: float,
    limits: RunnerLimits,
    max_step_tokens: int,
    max_cached: int | None,
) -> Request:
    """Make a request of what was submitted, its outputs limited to what fits.

    Args:
        submit: What was asked.
        arrival: Its place in the order of arrival.
        now_s: Clock reading. Seconds.
        limits: What the runner can hold.
        max_step_tokens: Most tokens a step computes.
        max_cached: Tokens that all pages together hold for one request; None: without end.

    Raises:
        RequestError: It can never be served; says why and what would do.
    """
    num_prompt = len(submit.prompt_ids)
    max_cached = limits.max_length if max_cached is None else max_cached
    _check(submit, limits, max_step_tokens, max_cached)
    max_outputs = _max_outputs(submit, limits, max_cached)
    draw_limit = max(1, max_outputs)
    num_drafts = limits.max_drafts if _may_draft(submit) else 0
    # One output ends it, and is never written: the last row begins at the output before.
    last_begin = num_prompt + draw_limit - 2
    return Request(
        id=submit.id,
        attempt=submit.attempt,
        arrival=arrival,
        prompt=submit.prompt_ids,
        outputs=list(submit.output_ids),
        params=submit.params,
        stop_ids=list(dict.fromkeys([*submit.stop_ids, *submit.params.stop_token_ids])),
        namespace=submit.namespace,
        adapter=submit.adapter,
        payer=submit.payer,
        share=max(1, submit.share),
        user=submit.user,
        priority=submit.priority,
        logprobs=submit.logprobs,
        asked_ids=submit.asked_ids,
        max_outputs=max_outputs,
        draw_limit=draw_limit,
        yields=POOLED[submit.pool] if submit.pool else DRAW,
        score_next=_first_scored(submit),
        num_drafts=num_drafts,
        last_begin=last_begin,
        kv_limit=min(last_begin + 1 + num_drafts, limits.max_length, max_cached),
        submitted_s=now_s,
        is_masked=submit.is_masked and not submit.pool,
        media=submit.media,
        page_ids=[],
        pages=[],
        cuts=[],
    )


def _check(submit: Submit, limits: RunnerLimits, max_step_tokens: int, max_cached: int) -> None:
    """Refuse what can never be served."""
    _check_values(submit, limits.vocab_size)
    _check_abilities(submit, limits)
    if submit.media:
        check_media(submit.media, limits.media, len(submit.prompt_ids), max_step_tokens)
    _check_length(submit, limits, max_step_tokens, max_cached)


def _max_outputs(submit: Submit, limits: RunnerLimits, max_cached: int) -> int:
    """Return how many outputs a request may have: what it asks, where that fits."""
    if submit.pool:
        return 0
    # The last output is never written to the cache, so it takes no room there.
    fits = min(limits.max_length, max_cached + 1) - len(submit.prompt_ids)
    wanted = submit.params.max_new_tokens
    return fits if wanted is None else min(wanted, fits)


def _first_scored(submit: Submit) -> int:
    """Return the first position of the prompt whose logprob is wanted; past the prompt: none."""
    # Earlier attempts sent all prompt logprobs before their first output.
    if submit.prompt_logprobs_from is None or submit.output_ids:
        return len(submit.prompt_ids)
    return max(1, submit.prompt_logprobs_from)


def _may_draft(submit: Submit) -> bool:
    """Whether tokens may be drafted for a request.

    What excludes drafts makes its rows plain ones, which are right without any.
    """
    is_excluded = submit.is_masked and MASKS in NO_DRAFTS
    return submit.drafts and not submit.pool and not is_excluded


def _check_length(
    submit: Submit, limits: RunnerLimits, max_step_tokens: int, max_cached: int
) -> None:
    """Refuse a prompt that is empty, or too long for the model, a step or the cache."""
    num_prompt = len(submit.prompt_ids)
    if num_prompt == 0:
        raise RequestError(
            "The prompt has no tokens.", remedy="Send at least one token.", field="prompt"
        )
    num_outputs = 0 if submit.pool or submit.params.max_new_tokens == 0 else 1
    if num_prompt + num_outputs > limits.max_length:
        outputs = "" if num_outputs == 0 else ", prompt and at least one output together"
        raise RequestError(
            f"The prompt has {num_prompt} tokens; this model serves {limits.max_length}{outputs}.",
            remedy=f"Shorten the prompt to {limits.max_length - num_outputs} tokens.",
            field="prompt",
            code="context_length_exceeded",
        )
    if not limits.is_causal and num_prompt > max_step_tokens:
        raise RequestError(
            f"The prompt has {num_prompt} tokens; this model computes it in one step, which has"
            f" {max_step_tokens}.",
            remedy=f"Shorten the prompt to {max_step_tokens} tokens.",
            field="prompt",
            code="context_length_exceeded",
        )
    if num_prompt > max_cached:
        raise RequestError(
            f"The prompt has {num_prompt} tokens; the cache holds {max_cached} in all.",
            remedy="Shorten the prompt, or give the server a larger cache.",
            field="prompt",
            code="context_length_exceeded",
        )


def _check_abilities(submit: Submit, limits: RunnerLimits) -> None:
    """Refuse what this runner cannot yield, or has no place for."""
    if submit.pool and (submit.pool not in limits.yields or submit.pool not in POOLED):
        has = ", ".join("tokens" if name == "draw" else name for name in limits.yields)
        raise RequestError(
            f"The request asks for {submit.pool[:64]!r}; this model yields {has} only.",
            remedy="Send it to a model that embeds or classifies so.",
            field="pool",
        )
    if not submit.pool and "draw" not in limits.yields:
        raise RequestError(
            "The request asks for tokens; this model yields pooled vectors only.",
            remedy="Send it to a model that generates.",
            field="pool",
        )
    if submit.adapter and not limits.num_adapters:
        raise RequestError(
            f"The request asks for adapter {submit.adapter!r}; this server holds none.",
            remedy="Send the request without an adapter.",
            field="adapter",
        )


def _check_values(submit: Submit, vocab_size: int) -> None:
    """Refuse values that the device could not bear.

    The API process has checked them for the client; here they must not harm anyone else.
    """
    submit.params.check(vocab_size)
    _check_ids("prompt", submit.prompt_ids, vocab_size)
    if submit.output_ids:
        _check_ids("output_ids", submit.output_ids, vocab_size)
    if submit.stop_ids:
        _check_ids("stop_ids", submit.stop_ids, vocab_size)
    if submit.asked_ids:
        _check_ids("asked_ids", submit.asked_ids, vocab_size)
    if submit.logprobs > vocab_size:
        raise RequestError(
            f"logprobs asks for {submit.logprobs} ids; this model has {vocab_size}.",
            remedy="Ask for fewer.",
            field="logprobs",
        )


def _check_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    if token_ids:
        check_token_id(field, min(token_ids), vocab_size)
        check_token_id(field, max(token_ids), vocab_size)
