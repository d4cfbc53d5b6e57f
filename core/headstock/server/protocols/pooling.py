"""``/pooling``, as vLLM has it: what a model yields of texts, or of each of their tokens."""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec

from headstock.errors import RequestError
from headstock.requests.sampling import Int64, Priority
from headstock.server.completion import Completion
from headstock.server.model_card import ModelCard
from headstock.server.protocols.embeddings import (
    REFUSES,
    Dimensions,
    EmbeddingsBody,
    KeepFirst,
    PoolCall,
    read_embeddings,
    usage_of,
    usual_pool,
)
from headstock.server.protocols.ranking import class_scores
from headstock.server.vectors import as_base64, token_rows, vector_of

Task = Literal["embed", "classify", "token_embed", "token_classify"]


class PoolingBody(msgspec.Struct, kw_only=True):
    """Body of ``/pooling``."""

    REFUSES: ClassVar[frozenset[str]] = REFUSES | {"messages", "images", "data", "normalize"}

    input: str | list[str | Int64 | list[Int64]]
    model: str | None = None
    task: Task | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = None
    prompt_name: str | None = None
    truncate_prompt_tokens: KeepFirst | None = None
    priority: Priority | None = None
    cache_salt: str | None = None


def read_pooling(body: PoolingBody, card: ModelCard, tenant: str = "") -> PoolCall:
    """Turn a body of ``/pooling`` into requests.

    Raises:
        RequestError: Naming the field at fault.
    """
    kind = usual_pool(card)
    if body.task is not None:
        kind = body.task if body.task.startswith("token_") else "pool"
        if kind == "pool" and body.task != card.task:
            raise RequestError(
                f"task is {body.task!r}; the model {card.name!r} is served for {card.task!r}.",
                remedy="Leave it out, or use another model.",
                field="task",
                code="not_supported",
            )
    if kind != "pool" and body.dimensions is not None:
        raise RequestError(
            f"dimensions is {body.dimensions}; vectors and scores of tokens are not cut.",
            remedy="Leave it out.",
            field="dimensions",
            code="not_supported",
        )
    fields = ("input", "model", "dimensions", "prompt_name", "truncate_prompt_tokens")
    given = {name: getattr(body, name) for name in (*fields, "priority", "cache_salt")}
    call = read_embeddings(EmbeddingsBody(**given), card, tenant)
    requests = [msgspec.structs.replace(request, pool=kind) for request in call.requests]
    return msgspec.structs.replace(call, requests=requests)


def pooling_answer(
    body: PoolingBody,
    call: PoolCall,
    completions: Sequence[Completion],
    card: ModelCard,
    created: int,
) -> dict[str, Any]:
    """Return the answer of ``/pooling``."""
    data = [
        {"index": index, "object": "pooling", **_data(body, call, completion, card)}
        for index, completion in enumerate(completions)
    ]
    return {
        "id": f"pool-{uuid.uuid4().hex}",
        "object": "list",
        "created": created,
        "model": card.name,
        "data": data,
        "usage": usage_of(completions),
    }


def _data(
    body: PoolingBody, call: PoolCall, completion: Completion, card: ModelCard
) -> dict[str, Any]:
    """Return what a text yielded; of tokens also which those are."""
    is_binary = body.encoding_format == "base64"
    if completion.submit.pool != "pool":
        found = token_rows(completion, card)
        if not is_binary:
            return {"data": found.rows, "token_ids": found.token_ids}
        flat = array("f", [value for row in found.rows for value in row])
        return {"data": as_base64(flat), "token_ids": found.token_ids}
    if card.task == "classify":
        values = array("f", class_scores(completion, card))
    else:
        values = vector_of(completion, card, call.dimensions)
    return {"data": as_base64(values) if is_binary else values.tolist()}
