"""Requests that go on with a session: its tokens come before their own, and they become turns."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headstock.server.frontdoor import Frontdoor
from headstock.server.generation import Generation
from headstock.server.protocols.parameters import not_yet
from headstock.server.request import GenerateRequest, TokensPrompt
from headstock.server.sessions import Continuation


async def in_session(
    frontdoor: Frontdoor, requests: Sequence[GenerateRequest], place: Continuation
) -> list[GenerateRequest]:
    """Return a call's one request with the session's tokens before its prompt.

    Raises:
        RequestError: The call has several, or images; or the session has no room.
    """
    request = requests[0]
    if len(requests) > 1 or request.params.n > 1 or request.prompt.images:
        what = "images" if request.prompt.images else "a batch or n over 1"
        raise not_yet("session_params", f"session_params with {what}")
    tokenizer = frontdoor.prompter.tokenizer
    bos_id = None if tokenizer is None else tokenizer.special_id("bos_token")
    token_ids = place.prompt(await frontdoor.encode(request.prompt), bos_id)
    return [msgspec.structs.replace(request, prompt=TokensPrompt(token_ids))]


def record_turn(place: Continuation | None, name: str, generation: Generation) -> None:
    """Keep a turn of a session, for those who go on from it; None: the call has none."""
    completion = generation.completions[0]
    if place is None or completion.end is None or completion.end.reason.kind == "abort":
        return
    place.record(name, completion.submit.prompt_ids, completion.output_ids)
