"""Which requests can be served at all, and under what limits."""

from __future__ import annotations

from array import array

from headstock.errors import RequestError
from headstock.requests.sampling import check_token_id
from headstock.scheduler.request import Request
from headstock.wire.messages import Submit


def accept(
    submit: Submit,
    *,
    arrival: int,
    now_s: float,
    max_length: int,
    max_cached: int,
    vocab_size: int,
    max_drafts: int = 0,
) -> Request:
    """Make a request of what was submitted, its outputs limited to what fits.

    Args:
        submit: What was asked.
        arrival: Its place in the order of arrival.
        now_s: Clock reading. Seconds.
        max_length: Longest request that the model serves. Tokens.
        max_cached: Tokens that all pages together hold.
        vocab_size: Ids the model has.
        max_drafts: Tokens that may be drafted a row and step.

    Raises:
        RequestError: It can never be served; says why and what would do.
    """
    num_prompt = len(submit.prompt_ids)
    if num_prompt == 0:
        raise RequestError(
            "The prompt has no tokens.", remedy="Send at least one token.", field="prompt"
        )
    _check_values(submit, vocab_size)
    is_scored_only = submit.params.max_new_tokens == 0
    if num_prompt + (0 if is_scored_only else 1) > max_length:
        raise RequestError(
            f"The prompt has {num_prompt} tokens; this model serves {max_length}, prompt and at"
            " least one output together.",
            remedy=f"Shorten the prompt to {max_length - 1} tokens.",
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
    params = submit.params
    # The last output is never written to the cache, so it takes no room there.
    fits = min(max_length, max_cached + 1) - num_prompt
    wanted = fits if params.max_new_tokens is None else params.max_new_tokens
    max_outputs = min(wanted, fits)
    draw_limit = max(1, max_outputs)
    num_drafts = max_drafts if submit.drafts else 0
    # One output ends it, and is never written: the last row begins at the output before.
    last_begin = num_prompt + draw_limit - 2
    score_from = submit.prompt_logprobs_from
    # Earlier attempts sent all prompt logprobs before their first output.
    is_scored = score_from is not None and not submit.output_ids
    return Request(
        id=submit.id,
        attempt=submit.attempt,
        arrival=arrival,
        prompt=array("I", submit.prompt_ids),
        outputs=list(submit.output_ids),
        params=params,
        stop_ids=list(dict.fromkeys([*submit.stop_ids, *params.stop_token_ids])),
        namespace=submit.namespace,
        priority=submit.priority,
        logprobs=submit.logprobs,
        asked_ids=submit.asked_ids,
        max_outputs=max_outputs,
        draw_limit=draw_limit,
        score_next=max(1, score_from) if is_scored and score_from is not None else num_prompt,
        num_drafts=num_drafts,
        last_begin=last_begin,
        kv_limit=min(last_begin + 1 + num_drafts, max_length, max_cached),
        submitted_s=now_s,
    )


def _check_values(submit: Submit, vocab_size: int) -> None:
    """Refuse values that the device could not bear.

    The API process has checked them for the client; here they must not harm anyone else.
    """
    submit.params.check(vocab_size)
    _check_ids("prompt", submit.prompt_ids, vocab_size)
    _check_ids("output_ids", submit.output_ids, vocab_size)
    _check_ids("stop_ids", submit.stop_ids, vocab_size)
    _check_ids("asked_ids", submit.asked_ids, vocab_size)
    if submit.logprobs > vocab_size:
        raise RequestError(
            f"logprobs asks for {submit.logprobs} ids; this model has {vocab_size}.",
            remedy="Ask for fewer.",
            field="logprobs",
        )


def _check_ids(field: str, token_ids: list[int], vocab_size: int) -> None:
    if token_ids:
        check_token_id(field, min(token_ids), vocab_size)
        check_token_id(field, max(token_ids), vocab_size)
