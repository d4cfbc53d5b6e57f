"""The native ``/generate``: its body, and its answers with ``meta_info``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import msgspec

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.requests.sampling import Int64, Priority
from headstock.server.completion import Completion, Delta, LogprobColumns
from headstock.server.errors import status_of
from headstock.server.protocols.events import GrowingEvent, event
from headstock.server.protocols.parameters import (
    CHANGE_ANSWERS,
    join_namespace,
    refuse_set,
    to_params,
)
from headstock.server.request import GenerateRequest, TextPrompt, TokensPrompt
from headstock.text import Tokenizer

MAX_PROMPTS = 512
WEIGHT_VERSION = "default"
_REFUSED = (
    "input_embeds", "image_data", "video_data", "audio_data", "return_hidden_states",
    "return_routed_experts", "return_indexer_topk", "return_entropy", "return_sampling_mask",
    "return_flat_raw_top_logprobs", "session_params", "lora_path", "custom_logit_processor",
    "bootstrap_host", "bootstrap_room", "require_reasoning", "max_thinking_tokens", "watermark",
)  # fmt: skip


class GenerateBody(msgspec.Struct, kw_only=True):
    """Body of ``/generate``; unknown keys are told back, not honoured. A list makes a batch."""

    REFUSES: ClassVar[frozenset[str]] = CHANGE_ANSWERS

    text: str | list[str] | None = None
    input_ids: list[Int64 | list[Int64]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: Int64 | list[Int64] | None = None
    top_logprobs_num: Int64 | list[Int64] | None = None
    token_ids_logprob: list[Int64 | list[Int64]] | None = None
    return_text_in_logprobs: bool | None = None
    return_prompt_token_ids: bool | None = None
    priority: Priority | None = None
    extra_key: str | list[str] | None = None
    cache_salt: str | list[str] | None = None
    input_embeds: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    return_hidden_states: Any = None
    return_routed_experts: Any = None
    return_indexer_topk: Any = None
    return_entropy: Any = None
    return_sampling_mask: Any = None
    return_flat_raw_top_logprobs: Any = None
    session_params: Any = None
    lora_path: Any = None
    custom_logit_processor: Any = None
    bootstrap_host: Any = None
    bootstrap_room: Any = None
    require_reasoning: Any = None
    max_thinking_tokens: Any = None
    watermark: Any = None


class NativeCall(msgspec.Struct, frozen=True):
    """A checked body.

    Attributes:
        requests: One a prompt.
        is_batch: Whether the answer is a list.
        wants_text: Whether logprob triples carry the token's text.
        wants_prompt_ids: Whether answers carry the prompt's ids.
    """

    requests: list[GenerateRequest]
    is_batch: bool
    is_streamed: bool
    wants_text: bool
    wants_prompt_ids: bool


def read(body: GenerateBody, tenant: str = "") -> NativeCall:
    """Turn a body into requests.

    Args:
        body: As it was sent.
        tenant: Prefix of the cache namespace.

    Raises:
        RequestError: Naming the field at fault.
    """
    refuse_set(body, _REFUSED)
    prompts, is_batch = _prompts(body)
    count = len(prompts)
    rids = _rids(body.rid, count)
    salts = _spread("cache_salt", body.cache_salt, count)
    keys = _spread("extra_key", body.extra_key, count)
    wants = _spread("return_logprob", body.return_logprob, count)
    starts = _spread("logprob_start_len", body.logprob_start_len, count)
    tops = _spread("top_logprobs_num", body.top_logprobs_num, count)
    asked = _asked(body.token_ids_logprob, count)
    given = _spread("sampling_params", body.sampling_params, count)
    requests = [
        _request(
            prompts[i],
            given[i] or {},
            rid=rids[i],
            namespace=join_namespace(tenant, keys[i], salts[i]),
            priority=body.priority or 0,
            logprobs=(tops[i] or 0) if wants[i] else None,
            start=starts[i],
            asked=asked[i] if wants[i] else [],
        )
        for i in range(count)
    ]
    has_many = is_batch or any(request.params.n > 1 for request in requests)
    return NativeCall(
        requests,
        has_many,
        bool(body.stream),
        bool(body.return_text_in_logprobs),
        bool(body.return_prompt_token_ids),
    )


def _request(
    prompt: TextPrompt | TokensPrompt,
    given: Mapping[str, Any],
    *,
    rid: str,
    namespace: str,
    priority: int,
    logprobs: int | None,
    start: int | None,
    asked: list[int],
) -> GenerateRequest:
    if logprobs is not None and not 0 <= logprobs <= 128:
        raise RequestError(
            f"top_logprobs_num is {logprobs}.", remedy="Use 0 to 128.", field="top_logprobs_num"
        )
    if len(asked) > 128:
        raise RequestError(
            f"token_ids_logprob has {len(asked)} ids; at most 128.",
            remedy="Ask for fewer.",
            field="token_ids_logprob",
        )
    return GenerateRequest(
        prompt=prompt,
        params=to_params(given),
        rid=rid,
        is_clipped=given.get("max_new_tokens") is None,
        logprobs=-1 if logprobs is None else logprobs,
        prompt_logprobs_from=None if logprobs is None or start in (None, -1) else start,
        asked_ids=asked,
        namespace=namespace,
        priority=priority,
    )


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
        "weight_version": WEIGHT_VERSION,
        "num_retractions": end.num_retractions if end else 0,
    }
    if end is not None:
        meta["queue_time"] = end.queue_s
        if elapsed_s is not None:
            meta["e2e_latency"] = elapsed_s
    if submit.logprobs >= 0:
        words = tokenizer if wants_text else None
        meta |= _logprobs(completion, num_outputs, words)
    result: dict[str, Any] = {"text": text, "output_ids": completion.output_ids[:num_outputs]}
    if wants_prompt_ids:
        result["prompt_token_ids"] = submit.prompt_ids
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
    scored = submit.prompt_ids[start:] if start is not None else []
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


def _prompts(body: GenerateBody) -> tuple[list[TextPrompt | TokensPrompt], bool]:
    """Return the prompts, and whether they came as a list."""
    if (body.text is None) == (body.input_ids is None):
        raise RequestError(
            "Give exactly one of text and input_ids.",
            remedy="Send a prompt as text, or as token ids.",
            field="text",
            code="missing_prompt",
        )
    if isinstance(body.text, str):
        return [TextPrompt(body.text)], False
    prompts: list[TextPrompt | TokensPrompt]
    if body.text is not None:
        prompts = [TextPrompt(text) for text in body.text]
    else:
        rows, is_list = id_rows("input_ids", body.input_ids or [])
        if not is_list:
            return [TokensPrompt(rows[0])], False
        prompts = [TokensPrompt(row) for row in rows]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise RequestError(
            f"The batch has {len(prompts)} prompts; 1 to {MAX_PROMPTS} are allowed.",
            remedy="Send several requests.",
            field="text" if body.text is not None else "input_ids",
        )
    return prompts, True


def _spread(field: str, value: Any, count: int) -> list[Any]:
    """Return one value a prompt: a list as it is, anything else for all."""
    if not isinstance(value, list):
        return [value] * count
    values = cast("list[Any]", value)
    if len(values) != count:
        raise RequestError(
            f"{field} has {len(values)} items for {count} prompts.",
            remedy="Give one for all, or one each.",
            field=field,
        )
    return values


def _asked(value: list[int | list[int]] | None, count: int) -> list[list[int]]:
    rows, is_list = id_rows("token_ids_logprob", value or [])
    return _spread("token_ids_logprob", rows, count) if is_list else rows * count


def id_rows(field: str, value: list[int | list[int]]) -> tuple[list[list[int]], bool]:
    """Return lists of ids, and whether ``value`` was a list of lists.

    Raises:
        RequestError: It mixes ids and lists.
    """
    kinds = set(map(type, value))
    if list not in kinds:
        return [cast("list[int]", value)], False
    if len(kinds) > 1:
        raise RequestError(
            f"{field} mixes token ids and lists of them.",
            remedy="Send a list of ids, or a list of lists.",
            field=field,
            code="invalid_type",
        )
    return cast("list[list[int]]", value), True


def _rids(value: str | list[str] | None, count: int) -> list[str]:
    """Return a name a prompt; a batch under one name gets ``name_0``, ``name_1`` …"""
    if value is None:
        return [uuid.uuid4().hex for _ in range(count)]
    names = _spread("rid", value, count)
    if isinstance(value, str) and count > 1:
        names = [f"{value}_{index}" for index in range(count)]
    for name in names:
        if not 0 < len(name) <= 128:
            raise RequestError(
                f"rid has {len(name)} characters; 1 to 128 are allowed.",
                remedy="Use a shorter one.",
                field="rid",
            )
    return names
