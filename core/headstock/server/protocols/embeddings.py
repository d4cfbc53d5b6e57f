"""Texts to vectors: OpenAI's, Cohere's, Ollama's and SGLang's bodies, and their answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from headstock.errors import RequestError
from headstock.requests.sampling import Int64, Priority
from headstock.server.completion import Completion
from headstock.server.model_card import ModelCard
from headstock.server.protocols import native_bodies
from headstock.server.protocols.messages import ChatMessage
from headstock.server.protocols.parameters import check_model, join_namespace, refuse_set
from headstock.server.protocols.seen_inputs import SeenInput, chat_prompt, seen_prompt
from headstock.server.request import GenerateRequest, PairPrompt, Prompt, TextPrompt, TokensPrompt
from headstock.server.speech import PLAIN, Dialect
from headstock.server.vectors import as_base64, check_dimensions, token_rows, vector_of

MAX_INPUTS = 2048
"""Texts of one call, as OpenAI has it."""
Dimensions = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
KeepFirst = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
REFUSES = frozenset({"lora_path", "image_data", "input_embeds", "embed_overrides"})


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/embeddings``: ``input``, or the ``messages`` of one chat."""

    REFUSES: ClassVar[frozenset[str]] = REFUSES | {"images"}

    input: str | list[str | Int64 | list[Int64] | SeenInput] | None = None
    messages: list[ChatMessage] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = None
    prompt_name: str | None = None
    truncate_prompt_tokens: KeepFirst | None = None
    priority: Priority | None = None
    cache_salt: str | None = None


class CohereEmbedBody(msgspec.Struct, kw_only=True):
    """Body of ``/v2/embed``."""

    REFUSES: ClassVar[frozenset[str]] = REFUSES | {"images", "inputs"}

    model: str | None = None
    texts: Annotated[list[str], msgspec.Meta(max_length=MAX_INPUTS)] = []
    input_type: str | None = None
    embedding_types: list[Literal["float", "base64"]] | None = None
    output_dimension: Dimensions | None = None
    truncate: Literal["NONE", "END"] = "END"
    max_tokens: Dimensions | None = None


class OllamaEmbedBody(msgspec.Struct, kw_only=True):
    """Body of ``/api/embed``."""

    model: str
    input: str | list[str] = []
    truncate: bool = True
    dimensions: Dimensions | None = None
    options: dict[str, Any] | None = None
    keep_alive: Int64 | float | str | None = None


class OllamaEmbeddingsBody(msgspec.Struct, kw_only=True):
    """Body of ``/api/embeddings``."""

    model: str
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: Int64 | float | str | None = None


class EncodeBody(msgspec.Struct, kw_only=True):
    """Body of ``/encode`` and ``/classify``. A list makes a batch; images as for ``/generate``."""

    text: str | list[str | list[str]] | None = None
    input_ids: list[Int64 | list[Int64]] | None = None
    rid: str | list[str] | None = None
    dimensions: Dimensions | None = None
    priority: Priority | None = None
    is_cross_encoder_request: bool = False
    image_data: native_bodies.Media | None = None
    video_data: native_bodies.Media | None = None
    audio_data: Any = None
    input_embeds: Any = None
    embed_overrides: Any = None
    lora_path: Any = None
    return_pooled_hidden_states: Any = None


_ENCODE_REFUSED = (
    "audio_data", "input_embeds", "embed_overrides", "lora_path", "return_pooled_hidden_states",
)  # fmt: skip


class PoolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body.

    Attributes:
        requests: One a text or pair, in order.
        dimensions: Elements to keep of vectors; None: all.
        is_list: Whether the answer is a list.
    """

    requests: list[GenerateRequest]
    dimensions: int | None = None
    is_list: bool = True


class EmbeddingItem(msgspec.Struct, kw_only=True):
    """One vector of an answer."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """Tokens of a call."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class EmbeddingsAnswer(msgspec.Struct, kw_only=True):
    """Answer of ``/v1/embeddings``."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


def read_embeddings(
    body: EmbeddingsBody, card: ModelCard, tenant: str = "", dialect: Dialect = PLAIN
) -> PoolCall:
    """Turn a body of ``/v1/embeddings`` into requests.

    Args:
        body: As it was sent.
        card: The served model.
        tenant: Prefix of the cache namespace.
        dialect: What the model's chat template has.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    check_dimensions(body.dimensions, card)
    if (body.input is None) == (body.messages is None):
        raise RequestError(
            "Give exactly one of input and messages.",
            remedy="Send texts, or the messages of a chat.",
            field="input",
            code="missing_prompt",
        )
    seen = _seen_inputs(body)
    field = "input" if body.messages is None else "messages"
    if body.messages is not None or seen:
        _refuse_text_fields(body, field)
    prompts: Sequence[Prompt]
    if body.messages is not None:
        prompts = [
            chat_prompt(
                body.messages,
                dialect,
                extra=body.chat_template_kwargs or {},
                add_generation_prompt=bool(body.add_generation_prompt),
                continue_final=bool(body.continue_final_message),
            )
        ]
    elif seen:
        prompts = [seen_prompt(index, item, dialect) for index, item in enumerate(seen)]
    else:
        kept = _kept("truncate_prompt_tokens", body.truncate_prompt_tokens, card)
        prompts = _prompts(body, prompt_of("prompt_name", body.prompt_name, card), kept)
    return PoolCall(
        requests=[
            pool_request(
                prompt,
                field,
                namespace=join_namespace(tenant, body.cache_salt),
                priority=body.priority or 0,
            )
            for prompt in prompts
        ],
        dimensions=body.dimensions,
    )


def _refuse_text_fields(body: EmbeddingsBody, field: str) -> None:
    """Refuse fields that only plain texts have, where ``field`` goes through the chat template."""
    for name in ("prompt_name", "truncate_prompt_tokens"):
        if getattr(body, name) is not None:
            raise RequestError(
                f"{name} is set, and {field} goes through the chat template.",
                remedy=f"Drop {name}.",
                field=name,
            )


def _seen_inputs(body: EmbeddingsBody) -> list[SeenInput]:
    """Return the items of ``input`` that may have images; []: it has none.

    Raises:
        RequestError: Only some may.
    """
    given = body.input if isinstance(body.input, list) else []
    found = [item for item in given if isinstance(item, SeenInput)]
    if found and len(found) != len(given):
        raise RequestError(
            "input mixes objects with text or token ids.",
            remedy="Send one kind.",
            field="input",
            code="invalid_type",
        )
    _check_count("input", len(found) or 1)
    return found


def read_texts(
    texts: Sequence[str],
    card: ModelCard,
    *,
    field: str,
    tenant: str = "",
    prefix: str | None = None,
    keep_first: int | None = None,
    dimensions: int | None = None,
) -> PoolCall:
    """Turn texts into requests.

    Args:
        texts: Their number is checked.
        card: The served model.
        field: What the caller calls them.
        tenant: Prefix of the cache namespace.
        prefix: Goes before each; None: the model's default prompt.
        keep_first: Tokens to keep of a longer text; None: it is refused.
        dimensions: Elements to keep of vectors; None: all.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_dimensions(dimensions, card)
    _check_count(field, len(texts))
    before = prompt_of("", None, card) if prefix is None else prefix
    return PoolCall(
        requests=[
            pool_request(TextPrompt(before + text, keep_first=keep_first), field, namespace=tenant)
            for text in texts
        ],
        dimensions=dimensions,
    )


def read_cohere(body: CohereEmbedBody, card: ModelCard, tenant: str = "") -> PoolCall:
    """Turn a body of ``/v2/embed`` into requests; ``input_type`` names a prompt of the model.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    name = (body.input_type or "").removeprefix("search_")
    prefix = card.prompts.get(name, None)
    kept = min(body.max_tokens or card.max_length, card.max_length)
    return read_texts(
        body.texts,
        card,
        field="texts",
        tenant=tenant,
        prefix=prefix,
        keep_first=kept if body.truncate == "END" else None,
        dimensions=body.output_dimension,
    )


def read_encode(
    body: EncodeBody, card: ModelCard, *, type_stride: int, tenant: str = ""
) -> PoolCall:
    """Turn a body of ``/encode`` or ``/classify`` into requests.

    Raises:
        RequestError: Naming the field at fault.
    """
    refuse_set(body, _ENCODE_REFUSED)
    check_dimensions(body.dimensions, card)
    if (body.text is None) == (body.input_ids is None):
        raise RequestError(
            "Give exactly one of text and input_ids.",
            remedy="Send a text, or token ids.",
            field="text",
            code="missing_prompt",
        )
    prompts: Sequence[TextPrompt | TokensPrompt | PairPrompt]
    is_list = True
    field = "input_ids" if body.text is None else "text"
    if body.text is None:
        rows, is_list = native_bodies.id_rows("input_ids", body.input_ids or [])
        prompts = [TokensPrompt(row) for row in rows]
    elif isinstance(body.text, str):
        prompts, is_list = [_encoded(body.text, card, type_stride)], False
    else:
        prompts = [_encoded(item, card, type_stride) for item in body.text]
    _check_count(field, len(prompts))
    for name in ("image_data", "video_data"):
        if getattr(body, name) is not None and any(isinstance(p, PairPrompt) for p in prompts):
            raise RequestError(
                f"{name} is set, and text has pairs, which are read together as text alone.",
                remedy=f"Send texts, or pairs without {name}.",
                field=name,
            )
    prompts = native_bodies.with_media(prompts, "image", body.image_data, is_batch=is_list)
    prompts = native_bodies.with_media(prompts, "video", body.video_data, is_batch=is_list)
    rids = native_bodies.names_of(body.rid, len(prompts))
    kind = usual_pool(card)
    return PoolCall(
        requests=[
            pool_request(
                prompt,
                field,
                namespace=tenant,
                priority=body.priority or 0,
                rid=rid,
                kind=kind,
            )
            for prompt, rid in zip(prompts, rids, strict=True)
        ],
        dimensions=body.dimensions,
        is_list=is_list,
    )


def _encoded(item: str | list[str], card: ModelCard, type_stride: int) -> TextPrompt | PairPrompt:
    if isinstance(item, str):
        return TextPrompt(prompt_of("", None, card) + item)
    if len(item) != 2:
        raise RequestError(
            f"text has an item of {len(item)} texts; a pair has 2.",
            remedy="Send texts, or pairs of texts.",
            field="text",
        )
    return PairPrompt(item[0], item[1], type_stride)


def pool_request(
    prompt: Prompt,
    field: str,
    *,
    namespace: str,
    priority: int = 0,
    rid: str | None = None,
    kind: str = "pool",
) -> GenerateRequest:
    """Return a request for the vector of ``prompt``, which the caller calls ``field``.

    ``kind`` is one of the card's ``pools``: something else may be wanted than one vector.
    """
    return GenerateRequest(
        prompt=prompt,
        pool=kind,
        rid=rid or uuid.uuid4().hex,
        namespace=namespace,
        priority=priority,
        names={"input_ids": field},
    )


def usual_pool(card: ModelCard) -> str:
    """Return what a model yields of a text where nothing else is asked for."""
    return card.pools[0] if card.pools else "pool"


def prompt_of(field: str, name: str | None, card: ModelCard) -> str:
    """Return the text that goes before an input: of the prompt ``name``, or the default one.

    Raises:
        RequestError: The model has no prompt of that name.
    """
    if name is None:
        return card.prompts.get(card.default_prompt, "")
    if name not in card.prompts:
        known = ", ".join(card.prompts) or "none"
        raise RequestError(
            f"{field} is {name[:64]!r}; the prompts of {card.name!r} are: {known}.",
            remedy="Use one of them, or write the prompt before the text yourself.",
            field=field,
        )
    return card.prompts[name]


def embeddings_answer(
    call: PoolCall, completions: Sequence[Completion], card: ModelCard, encoding: str
) -> EmbeddingsAnswer:
    """Return the answer of ``/v1/embeddings``."""
    data: list[EmbeddingItem] = []
    for index, completion in enumerate(completions):
        vector = vector_of(completion, card, call.dimensions)
        written = as_base64(vector) if encoding == "base64" else vector.tolist()
        data.append(EmbeddingItem(index=index, embedding=written))
    return EmbeddingsAnswer(data=data, model=card.name, usage=usage_of(completions))


def usage_of(completions: Sequence[Completion]) -> EmbeddingUsage:
    """Return the tokens that ``completions`` had, and how many of them were cached."""
    total = sum(len(completion.submit.prompt_ids) for completion in completions)
    cached = sum(completion.cached_tokens for completion in completions)
    return EmbeddingUsage(
        prompt_tokens=total,
        total_tokens=total,
        prompt_tokens_details={"cached_tokens": cached},
    )


def encode_answer(
    completion: Completion, rid: str, card: ModelCard, dimensions: int | None = None
) -> dict[str, Any]:
    """Return what ``/encode`` and ``/classify`` say of a completion.

    That is a vector, or where the model scores steps the probabilities of each step.
    """
    end = completion.end
    if card.scores_steps:
        embedding: list[Any] = token_rows(completion, card).rows
    else:
        embedding = vector_of(completion, card, dimensions).tolist()
    return {
        "embedding": embedding,
        "meta_info": {
            "id": rid,
            "prompt_tokens": len(completion.submit.prompt_ids),
            "completion_tokens": 0,
            "cached_tokens": completion.cached_tokens,
            "weight_version": completion.weight_version,
            "queue_time": end.queue_s if end is not None else 0.0,
        },
    }


def _prompts(body: EmbeddingsBody, prefix: str, kept: int | None) -> list[Prompt]:
    given = body.input or []
    listed = [given] if isinstance(given, str) else given
    items = [item for item in listed if not isinstance(item, SeenInput)]
    texts = [item for item in items if isinstance(item, str)]
    if texts and len(texts) == len(items):
        _check_count("input", len(texts))
        return [TextPrompt(prefix + text, keep_first=kept) for text in texts]
    if texts:
        raise RequestError(
            "input mixes text and token ids.",
            remedy="Send one kind.",
            field="input",
            code="invalid_type",
        )
    if body.prompt_name is not None:
        raise RequestError(
            "prompt_name is set, and input has token ids.",
            remedy="Send text, or put the prompt's tokens into input.",
            field="prompt_name",
        )
    rows, _ = native_bodies.id_rows("input", [item for item in items if not isinstance(item, str)])
    _check_count("input", len(rows))
    return [TokensPrompt(row if kept is None else row[:kept]) for row in rows]


def _kept(field: str, wanted: int | None, card: ModelCard) -> int | None:
    """Return how many tokens to keep of a longer text; -1 stands for as many as fit."""
    if wanted == 0:
        raise RequestError(
            f"{field} is 0.",
            remedy="Keep at least one token, or -1 for as many as fit.",
            field=field,
        )
    return card.max_length if wanted == -1 else wanted


def _check_count(field: str, count: int) -> None:
    if not 1 <= count <= MAX_INPUTS:
        raise RequestError(
            f"{field} has {count} items; 1 to {MAX_INPUTS} are allowed.",
            remedy="Send at least one text." if count == 0 else "Send several requests.",
            field=field,
            code="missing_prompt" if count == 0 else "invalid_value",
        )
