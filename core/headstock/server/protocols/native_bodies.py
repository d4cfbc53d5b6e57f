"""The body of the native ``/generate``, and the requests that it asks for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import msgspec

from headstock.errors import RequestError
from headstock.multimodal import Source
from headstock.requests.sampling import Int64, Priority
from headstock.server.protocols.grammars import native_grammar
from headstock.server.protocols.parameters import (
    CHANGE_ANSWERS,
    join_namespace,
    not_yet,
    refuse_set,
    to_params,
)
from headstock.server.request import GenerateRequest, PairPrompt, TextPrompt, TokensPrompt
from headstock.server.sessions import SessionParams
from headstock.server.speech import PLAIN, Dialect, Speech
from headstock.server.thought_budget import ThoughtBudget, read_budget

MAX_PROMPTS = 512
Media = str | list[str | list[str] | None]
"""Images, or videos: one, or several; of a batch one entry a prompt."""
Seen = TypeVar("Seen", bound=TextPrompt | TokensPrompt | PairPrompt)
_REFUSED = (
    "input_embeds", "audio_data", "return_hidden_states",
    "return_routed_experts", "return_indexer_topk", "return_entropy", "return_sampling_mask",
    "return_flat_raw_top_logprobs", "custom_logit_processor",
    "bootstrap_host", "bootstrap_room", "watermark",
)  # fmt: skip


class GenerateBody(msgspec.Struct, kw_only=True):
    """Body of ``/generate``; unknown keys are reported, not honoured. A list makes a batch."""

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
    image_data: Media | None = None
    video_data: Media | None = None
    audio_data: Any = None
    return_hidden_states: Any = None
    return_routed_experts: Any = None
    return_indexer_topk: Any = None
    return_entropy: Any = None
    return_sampling_mask: Any = None
    return_flat_raw_top_logprobs: Any = None
    session_params: SessionParams | None = None
    lora_path: str | list[str | None] | None = None
    lora_name: str | list[str | None] | None = None
    custom_logit_processor: Any = None
    bootstrap_host: Any = None
    bootstrap_room: Any = None
    require_reasoning: bool | None = None
    max_thinking_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
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


def read(
    body: GenerateBody, tenant: str = "", dialect: Dialect = PLAIN, *, has_sessions: bool = False
) -> NativeCall:
    """Turn a body into requests.

    Args:
        body: As it was sent.
        dialect: How the served model marks its thoughts.
        tenant: Prefix of the cache namespace.
        has_sessions: Whether the caller continues sessions.

    Raises:
        RequestError: Naming the field at fault.
    """
    refuse_set(body, _REFUSED if has_sessions else (*_REFUSED, "session_params"))
    prompts, is_batch = _prompts(body)
    count = len(prompts)
    prompts = with_media(prompts, "image", body.image_data, is_batch=is_batch)
    prompts = with_media(prompts, "video", body.video_data, is_batch=is_batch)
    rids = names_of(body.rid, count)
    salts = _spread("cache_salt", body.cache_salt, count)
    keys = _spread("extra_key", body.extra_key, count)
    wants = _spread("return_logprob", body.return_logprob, count)
    starts = _spread("logprob_start_len", body.logprob_start_len, count)
    tops = _spread("top_logprobs_num", body.top_logprobs_num, count)
    asked = _asked(body.token_ids_logprob, count)
    adapters = _adapters(body, count)
    given = _spread("sampling_params", body.sampling_params, count)
    speech = _thoughts_first(dialect) if body.require_reasoning else None
    thoughts = read_budget(
        dialect.reasoning,
        [("max_thinking_tokens", body.max_thinking_tokens)],
        is_continued=False,
    )
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
            adapter=adapters[i] or "",
            speech=speech,
            thoughts=thoughts,
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
    adapter: str,
    speech: Speech | None,
    thoughts: ThoughtBudget | None,
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
    grammar, given = native_grammar(given)
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
        grammar=grammar,
        adapter=adapter,
        speech=speech,
        thoughts=thoughts,
    )


def _thoughts_first(dialect: Dialect) -> Speech:
    """Return what lets a grammar bind only what follows the thoughts."""
    if dialect.reasoning is None:
        raise not_yet(
            "require_reasoning",
            "require_reasoning, with a model whose chat template has no thoughts,",
        )
    return Speech(reasoning=dialect.reasoning, calls=None, tools={}, tokens=dialect.tokens)


def _adapters(body: GenerateBody, count: int) -> list[str | None]:
    """Return the name of each prompt's LoRA adapter; None: it has none."""
    if body.lora_name is not None and body.lora_path is not None:
        raise RequestError(
            "lora_name and lora_path are both set.", remedy="Set one.", field="lora_name"
        )
    if body.lora_name is not None:
        return _spread("lora_name", body.lora_name, count)
    return _spread("lora_path", body.lora_path, count)


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
    if body.text is not None:
        _check_batch("text", len(body.text))
        return [TextPrompt(text) for text in body.text], True
    rows, is_list = id_rows("input_ids", body.input_ids or [])
    if not is_list:
        return [TokensPrompt(rows[0])], False
    _check_batch("input_ids", len(rows))
    return [TokensPrompt(row) for row in rows], True


def _check_batch(field: str, num_prompts: int) -> None:
    if not 1 <= num_prompts <= MAX_PROMPTS:
        raise RequestError(
            f"The batch has {num_prompts} prompts; 1 to {MAX_PROMPTS} are allowed.",
            remedy="Send several requests.",
            field=field,
        )


def with_media(
    prompts: Sequence[Seen],
    kind: Literal["image", "video"],
    given: Media | None,
    *,
    is_batch: bool,
) -> list[Seen]:
    """Return the prompts with their images, or videos: of a batch, one entry each.

    Raises:
        RequestError: The entries are not as many as the prompts, or lists within a list.
    """
    if given is None:
        return list(prompts)
    field = f"{kind}_data"
    rows: list[Any] = [given]
    if is_batch:
        rows = given if isinstance(given, list) else [given] * len(prompts)
    if len(rows) != len(prompts):
        raise RequestError(
            f"{field} has {len(rows)} entries for {len(prompts)} prompts.",
            remedy=f"Give one entry a prompt: one {kind}, a list of them, or null.",
            field=field,
        )
    found: list[Seen] = []
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        where = f"{field}[{index}]" if is_batch and isinstance(given, list) else field
        urls = cast("list[Any]", row if isinstance(row, list) else [] if row is None else [row])
        if not all(isinstance(url, str) for url in urls):
            raise RequestError(
                f"{where} holds what is not a {kind}.",
                remedy="Give data URLs, base64 or addresses, one list a prompt.",
                field=where,
            )
        names = [f"{where}[{i}]" if isinstance(row, list) else where for i in range(len(urls))]
        pairs = zip(names, urls, strict=True)
        images = [Source(name, url, is_bare=True, kind=kind) for name, url in pairs]
        found.append(msgspec.structs.replace(prompt, images=[*prompt.images, *images]))
    return found


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


def names_of(value: str | list[str] | None, count: int) -> list[str]:
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
