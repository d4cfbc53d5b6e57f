"""The answers of the native ``/generate``, whole and streamed, with ``meta_info``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from headstock.requests import FinishReason
from headstock.server.completion import Completion, Delta, LogprobColumns
from headstock.server.errors import status_of
from headstock.server.protocols.events import GrowingEvent, event
from headstock.server.protocols.native_bodies import NativeCall
from headstock.text import Tokenizer


def answer(
    completion: Completion,
    rid: str,
    tokenizer: Tokenizer | None,
    *,
    wants_text: bool = False,
    wants_prompt_ids: bool = False,
    elapsed_s: float | None = None,
) -> dict[str, Any]:
    """Return what ``/generate`` says of a completion that has ended.

    Args:
        completion: The completion.
        rid: The name under which the caller knows it.
        tokenizer: For texts of logprob triples.
        wants_text: Fill the third item of each triple.
        wants_prompt_ids: Add ``prompt_token_ids``.
        elapsed_s: From the request to the end. Seconds.
    """
    return snapshot(
        completion,
        rid,
        tokenizer,
        text=completion.text,
        num_outputs=len(completion.output_ids),
        wants_text=wants_text,
        wants_prompt_ids=wants_prompt_ids,
        elapsed_s=elapsed_s,
    )


def snapshot(
    completion: Completion,
    rid: str,
    tokenizer: Tokenizer | None,
    *,
    text: str,
    num_outputs: int,
    wants_text: bool,
    wants_prompt_ids: bool,
    elapsed_s: float | None = None,
    is_end: bool = True,
) -> dict[str, Any]:
    """Return what ``/generate`` says of a completion's first ``num_outputs`` tokens."""
    submit = completion.submit
    end = completion.end if is_end else None
    meta: dict[str, Any] = {
        "id": rid,
        "finish_reason": finish_reason(end.reason, num_outputs) if end else None,
        "prompt_tokens": len(submit.prompt_ids),
        "completion_tokens": num_outputs,
        "reasoning_tokens": 0,
        "cached_tokens": completion.cached_tokens,
        "weight_version": completion.weight_version,
        "num_retractions": end.num_retractions if end else 0,
    }
    if end is not None:
        meta["queue_time"] = end.queue_s
        if end.num_drafted:
            meta["spec_draft_token_num"] = end.num_drafted
            meta["spec_accept_token_num"] = end.num_accepted
        if elapsed_s is not None:
            meta["e2e_latency"] = elapsed_s
    if submit.logprobs >= 0:
        words = tokenizer if wants_text else None
        meta |= _logprobs(completion, num_outputs, words)
    result: dict[str, Any] = {"text": text, "output_ids": completion.output_ids[:num_outputs]}
    if wants_prompt_ids:
        result["prompt_token_ids"] = submit.prompt_ids.tolist()
    result["meta_info"] = meta
    return result


def finish_reason(reason: FinishReason, num_outputs: int) -> dict[str, Any]:
    """Return a finish reason as native answers spell it."""
    if reason.kind == "stop":
        return {"type": "stop", "matched": reason.matched}
    if reason.kind == "length":
        return {"type": "length", "length": num_outputs}
    code = reason.code or "aborted"
    return {
        "type": "abort",
        "message": reason.message or "Aborted.",
        "status_code": status_of(code) if reason.kind == "error" else None,
        "err_type": code if reason.kind == "error" else None,
    }


class NativeStream:
    """Cumulative events of one streamed call."""

    def __init__(
        self,
        call: NativeCall,
        completions: Sequence[Completion],
        rids: Sequence[str],
        tokenizer: Tokenizer | None,
    ) -> None:
        self._call = call
        self._completions = completions
        self._rids = rids
        self._tokenizer = tokenizer
        self._texts = [""] * len(completions)
        self._growing: dict[int, GrowingEvent] = {}
        """By index, from the first event of a completion on: what all its events have in common."""

    def event(self, delta: Delta, elapsed_s: float) -> dict[str, Any]:
        """Return the next event of a completion."""
        self._texts[delta.index] += delta.text
        return self._snapshot(delta, self._texts[delta.index], elapsed_s)

    def write(self, delta: Delta, elapsed_s: Callable[[], float]) -> bytes:
        """Return the next event of a completion as it is sent; instead of :meth:`event`."""
        completion = self._completions[delta.index]
        if completion.submit.logprobs >= 0:
            return event(self.event(delta, elapsed_s()))
        if delta.end is not None:
            return event(self._snapshot(delta, completion.text, elapsed_s()))
        growing = self._growing.get(delta.index)
        if growing is None:
            growing = self._grow(completion, self._rids[delta.index])
            self._growing[delta.index] = growing
        return growing.write(delta)

    def _grow(self, completion: Completion, rid: str) -> GrowingEvent:
        empty = self._snapshot(Delta(completion.index, "", 0), "", 0.0)
        return GrowingEvent(completion.output_ids, empty)

    def _snapshot(self, delta: Delta, text: str, elapsed_s: float) -> dict[str, Any]:
        index = delta.index
        found = snapshot(
            self._completions[index],
            self._rids[index],
            self._tokenizer,
            text=text,
            num_outputs=delta.num_outputs,
            wants_text=self._call.wants_text,
            wants_prompt_ids=self._call.wants_prompt_ids,
            elapsed_s=elapsed_s,
            is_end=delta.end is not None,
        )
        if self._call.is_batch:
            found["index"] = index
        return found


def _logprobs(
    completion: Completion, num_outputs: int, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    submit = completion.submit
    outputs = completion.output_ids[:num_outputs]
    columns = completion.logprobs
    found: dict[str, Any] = {
        "output_token_logprobs": _triples(columns.chosen, outputs, tokenizer),
        "output_token_logprobs_length": num_outputs,
    }
    start = submit.prompt_logprobs_from
    scored = submit.prompt_ids[start:].tolist() if start is not None else []
    prompt = completion.prompt_logprobs
    gap = len(scored) - len(prompt)
    # The first position never has one: clients add the others up.
    known = [None] * gap + prompt.chosen if gap > 0 else [None, *prompt.chosen[1:]]
    found["input_token_logprobs"] = _triples(known, scored, tokenizer) if scored else []
    if submit.logprobs > 0:
        found["output_top_logprobs"] = _tops(columns, num_outputs, tokenizer)
        found["input_top_logprobs"] = _lead(_tops(prompt, len(prompt), tokenizer), len(scored))
    if submit.asked_ids:
        asked = submit.asked_ids
        found["output_token_ids_logprobs"] = [
            _triples(row, asked, tokenizer) for row in columns.asked[:num_outputs]
        ]
        rows = [_triples(row, asked, tokenizer) for row in prompt.asked]
        found["input_token_ids_logprobs"] = _lead(rows, len(scored))
    return found


def _lead(rows: list[Any], count: int) -> list[Any]:
    """Return ``rows`` as the last ones of ``count``, the first of which is always null."""
    if count == 0:
        return []
    return [None] * (count - len(rows)) + rows if len(rows) < count else [None, *rows[1:]]


def _tops(columns: LogprobColumns, count: int, tokenizer: Tokenizer | None) -> list[Any]:
    pairs = zip(columns.top[:count], columns.top_ids[:count], strict=True)
    return [_triples(row, ids, tokenizer) for row, ids in pairs]


def _triples(
    values: Sequence[float | None], ids: Sequence[int], tokenizer: Tokenizer | None
) -> list[list[Any]]:
    if tokenizer is None:
        return [[value, index, None] for value, index in zip(values, ids, strict=False)]
    text = tokenizer.token_text
    return [[value, index, text(index)] for value, index in zip(values, ids, strict=False)]
