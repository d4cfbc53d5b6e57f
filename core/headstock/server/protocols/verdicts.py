"""Rerankers that generate: asked whether a document answers a query, they say yes or no.

The chat template puts the two into words: it reads messages of the roles ``query`` and
``document``, or variables of these names, and an instruction if there is one.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from headstock.errors import RequestError
from headstock.requests import SamplingParams
from headstock.server.model_card import ModelCard
from headstock.server.request import ChatPrompt, GenerateRequest
from headstock.server.vectors import sigmoid


def verdict_request(
    query: str, document: str, instruct: str | None, card: ModelCard, *, field: str, tenant: str
) -> GenerateRequest:
    """Return what asks for the likelihoods of yes and no.

    Args:
        query: What is looked for.
        document: What may answer it.
        instruct: What counts as an answer; None: what the model's files or template say.
        card: Of a model with ``verdict_ids``.
        field: What the caller calls the document.
        tenant: Prefix of the cache namespace.
    """
    said = card.prompts.get(card.default_prompt) if instruct is None else instruct
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    extra = {"query": query, "document": document}
    if said:
        messages.insert(0, {"role": "system", "content": said})
        extra["instruct"] = said
    return GenerateRequest(
        prompt=ChatPrompt(messages, extra=extra),
        params=SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True),
        rid=uuid.uuid4().hex,
        logprobs=0,
        asked_ids=card.verdict_ids,
        namespace=tenant,
        names={"input_ids": field, "messages": field},
        adapter=card.adapter,
    )


def verdict_score(logprobs: Sequence[float], card: ModelCard) -> float:
    """Return the probability of yes among yes and no, or its log-odds where scores are unbounded.

    Args:
        logprobs: Of ``card.verdict_ids``.
        card: The served model.
    """
    yes, no = logprobs
    return sigmoid(yes - no) if card.is_bounded else yes - no


def refuse_instruct(instruct: str | None, card: ModelCard) -> None:
    """Refuse an instruction that no template would show to the model.

    Raises:
        RequestError: The model takes none.
    """
    if instruct is not None and not card.verdict_ids:
        raise RequestError(
            f"instruct is set, and the model {card.name!r} takes none: it is not a reranker that"
            " answers yes or no.",
            remedy="Leave it out, or write it before the query.",
            field="instruct",
            code="not_supported",
        )
