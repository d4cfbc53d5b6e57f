"""The engine as a program's steps see it: generates and scores through the front door."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.programs import Branch, Chosen, Gen, Generated, Message, Select
from headstock.programs.choices import score
from headstock.programs.model import OnText, Usage
from headstock.requests import SamplingParams
from headstock.server.completion import Completion
from headstock.server.errors import BusyError
from headstock.server.frontdoor import Frontdoor
from headstock.server.generation import Generation
from headstock.server.payers import NAMELESS, Payer
from headstock.server.protocols import native_answers
from headstock.server.protocols.grammars import native_grammar
from headstock.server.protocols.parameters import to_params
from headstock.server.records import NO_CALL, Call
from headstock.server.request import (
    ChatPrompt,
    GenerateRequest,
    TextPrompt,
    TokensPrompt,
)

MAX_WAIT_S = 300.0
"""How long a program that has begun waits for a place in the queue. Seconds."""
LOOK_S = 1.0


class DoorModel:
    """Generates for programs.

    Args:
        door: Takes the requests.
        namespace: Cached prefixes are shared only within one.
        priority: Of all requests.
        adapter: Name of the LoRA adapter of all requests; "": none.
        payer: Whose account they count against.
        call: The call that runs the program.
    """

    def __init__(
        self,
        door: Frontdoor,
        *,
        namespace: str = "",
        priority: int = 0,
        adapter: str = "",
        payer: Payer = NAMELESS,
        call: Call = NO_CALL,
    ) -> None:
        self._door = door
        self._call = call
        self._payer = payer
        self._namespace = namespace
        self._priority = priority
        self._adapter = adapter
        self._has_begun = False

    async def generate(self, state: Branch, step: Gen, on_text: OnText | None) -> Generated:
        """Go on from ``state``; see :class:`headstock.programs.Model`."""
        grammar, given = native_grammar(step.sampling_params)
        request = GenerateRequest(
            prompt=prompt_of(state),
            params=to_params(given),
            grammar=grammar,
            is_clipped=given.get("max_new_tokens") is None,
            logprobs=step.top_logprobs_num if step.return_logprob else -1,
            prompt_logprobs_from=step.logprob_start_len,
            namespace=self._namespace,
            priority=self._priority,
            adapter=self._adapter,
        )
        begun_s = asyncio.get_running_loop().time()
        generation = await self._begin([request], is_streamed=on_text is not None)
        try:
            if on_text is not None:
                await _stream(generation, on_text)
            await generation.finished()
        finally:
            generation.abort()
        completions = generation.completions
        details = None
        if step.return_logprob:
            words = self._door.prompter.tokenizer
            details = [
                native_answers.answer(c, c.submit.id, words, wants_text=True)["meta_info"]
                for c in completions
            ]
        return Generated([c.text for c in completions], _usage(completions, begun_s, details))

    async def select(self, state: Branch, step: Select) -> Chosen:
        """Score the choices after ``state``: one call, which computes the common prefix once."""
        begun_s = asyncio.get_running_loop().time()
        prefix, *rows = await self._with_each(state, ["", *step.choices])
        # A choice may join its first letters with the last ones of the prefix to other tokens, so
        # all choices are scored from where they part from the prefix and from each other.
        begin = max(1, min(_common(prefix, row) for row in rows))
        scored = [row[begin:] for row in rows]
        for choice, tail in zip(step.choices, scored, strict=True):
            if not tail:
                raise RequestError(
                    f"The choice {choice!r} has no token to score: nothing stands before it.",
                    remedy="Put text before it.",
                    field="choices",
                )
        if all(len(tail) == 1 for tail in scored):
            logprobs, completions = await self._score_next(rows[0][:begin], scored)
        else:
            logprobs, completions = await self._score(rows, begin)
        base: list[list[float]] = []
        if step.method == "unconditional_likelihood_normalized":
            base, more = await self._score(await self._alone(step.choices), 1)
            completions = [*completions, *more]
        scores = score(step.method, logprobs, scored, base)
        best = max(range(len(scores)), key=scores.__getitem__)
        return Chosen(best, _usage(completions, begun_s), scores, logprobs)

    async def _with_each(self, state: Branch, ends: Sequence[str]) -> list[list[int]]:
        """Return the tokens of a state with each of ``ends`` after it."""
        prompt = prompt_of(state)
        if isinstance(prompt, ChatPrompt):  # another process renders it, which a thread waits for
            text = await asyncio.to_thread(self._door.prompter.render, prompt)
            prompt = TextPrompt(text, add_special_tokens=False)
        text, special = prompt.text, prompt.add_special_tokens
        prompts = [TextPrompt(text + end, special) for end in ends]
        return list(await asyncio.gather(*map(self._door.encode, prompts)))

    async def _score_next(
        self, prefix: list[int], tails: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], Sequence[Completion]]:
        """Score one token each: all at once, where the prefix ends."""
        asked = list(dict.fromkeys(tail[0] for tail in tails))
        found = await self._whole([self._scoring(prefix, None, asked)])
        row = dict(zip(asked, found[0].logprobs.asked[0], strict=True))
        return [[row[tail[0]]] for tail in tails], found

    async def _alone(self, choices: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each choice by itself, after what a text begins with."""
        begin = await self._door.encode(TextPrompt("")) or self._door.card.eos_ids[:1]
        if not begin:
            raise RequestError(
                "This model has no token that a text begins with, so that nothing can be scored"
                " by itself.",
                remedy="Use the method token_length_normalized.",
                field="method",
            )
        rows = [await self._door.encode(TextPrompt(c, add_special_tokens=False)) for c in choices]
        return [[begin[-1], *row] for row in rows]

    async def _score(
        self, rows: Sequence[list[int]], begin: int
    ) -> tuple[list[list[float]], Sequence[Completion]]:
        """Score the tokens of each row from ``begin`` on."""
        found = await self._whole([self._scoring(row, begin, []) for row in rows])
        pairs = zip(found, rows, strict=True)
        return [list(c.prompt_logprobs.chosen[begin - len(row) :]) for c, row in pairs], found

    def _scoring(self, ids: list[int], begin: int | None, asked: list[int]) -> GenerateRequest:
        return GenerateRequest(
            prompt=TokensPrompt(ids),
            params=SamplingParams(max_new_tokens=0 if begin is not None else 1, ignore_eos=True),
            logprobs=0,
            prompt_logprobs_from=begin,
            asked_ids=asked,
            namespace=self._namespace,
            priority=self._priority,
            adapter=self._adapter,
        )

    async def _whole(self, requests: Sequence[GenerateRequest]) -> Sequence[Completion]:
        """Return ``requests`` at their end: all at once, or one by one where the queue is short."""
        try:
            return await self._finished(requests)
        except RequestError as error:
            is_short = error.code == "queue_full" and self._has_begun
            if len(requests) == 1 or not (is_short or error.code == "too_many_completions"):
                raise
        found: list[Completion] = []
        for request in requests:
            found += await self._finished([request])
        return found

    async def _finished(self, requests: Sequence[GenerateRequest]) -> Sequence[Completion]:
        generation = await self._begin(requests, is_streamed=False)
        try:
            await generation.finished()
        finally:
            generation.abort()
        return generation.completions

    async def _begin(self, requests: Sequence[GenerateRequest], *, is_streamed: bool) -> Generation:
        """Send ``requests``; a program that has begun waits for a place in the queue.

        Its first step is refused like any request, so that callers feel that the server is full;
        later ones would throw away what the earlier ones have brought.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + MAX_WAIT_S
        while True:
            try:
                generation = await self._door.generate(
                    requests, is_streamed=is_streamed, payer=self._payer, call=self._call
                )
            except BusyError as error:
                is_wanted = error.code == "queue_full" and self._has_begun and len(requests) == 1
                if not is_wanted or clock() > deadline:
                    raise
                await asyncio.sleep(min(error.retry_after_s, LOOK_S))
            else:
                self._has_begun = True
                return generation


def prompt_of(state: Branch) -> ChatPrompt | TextPrompt:
    """Return what a state is to be gone on from."""
    if not state.messages:
        return TextPrompt(state.text)
    images: list[Source] = []
    messages = [{"role": m.role, "content": _content_of(m, images)} for m in state.messages]
    is_continued = messages[-1]["role"] == "assistant"
    return ChatPrompt(messages, continue_final=is_continued, images=images)


def _content_of(message: Message, images: list[Source]) -> str | list[dict[str, str]]:
    """Return what templates read of a turn; its images are added to ``images``."""
    if not message.has_media:
        return message.text
    parts: list[dict[str, str]] = []
    for part in message.content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            where = f"{part.kind} {len(images)} of the program"
            images.append(Source(where, part.url, kind=part.kind, num_frames=part.num_frames))
            parts.append({"type": part.kind})
    return parts


async def _stream(generation: Generation, on_text: OnText) -> None:
    while deltas := await generation.deltas():
        for delta in deltas:
            if delta.text:
                on_text(delta.index, delta.text)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _usage(
    completions: Sequence[Completion],
    begun_s: float,
    details: list[dict[str, Any]] | None = None,
) -> Usage:
    """Return what ``completions`` took together; the end is the first one's."""
    ends = [completion.end for completion in completions if completion.end is not None]
    starts = [c.started_s for c in completions if c.started_s is not None]
    reason = ends[0].reason if ends else None
    return Usage(
        prompt_tokens=sum(len(completion.submit.prompt_ids) for completion in completions),
        cached_tokens=sum(completion.cached_tokens for completion in completions),
        completion_tokens=sum(len(completion.output_ids) for completion in completions),
        queue_s=max((end.queue_s for end in ends), default=0.0),
        first_after_s=min(starts) - begun_s if starts else None,
        finish_reason=None if reason is None else reason.kind,
        matched=None if reason is None else reason.matched,
        output=details,
    )
