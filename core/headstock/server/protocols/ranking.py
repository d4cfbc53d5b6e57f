"""Scores of texts: rerankers, classifiers, similarities, and the likelihood of labels.

What a score is depends on what the model is served for: the cosine of two vectors (embed), what a
classifier gives a pair (classify), or the probability of a label as the next token (generate): of
yes, where the model is a reranker.
"""

from __future__ import annotations

import math
import uuid
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from headstock.errors import RequestError
from headstock.requests import SamplingParams
from headstock.requests.sampling import Int64, TokenId
from headstock.server.completion import Completion
from headstock.server.model_card import ModelCard
from headstock.server.protocols.embeddings import (
    MAX_INPUTS,
    REFUSES,
    Dimensions,
    pool_request,
    usage_of,
)
from headstock.server.protocols.parameters import check_model
from headstock.server.protocols.verdicts import (
    refuse_instruct,
    verdict_request,
    verdict_score,
)
from headstock.server.request import GenerateRequest, PairPrompt, TextPrompt, TokensPrompt
from headstock.server.vectors import sigmoid, similarity, softmax, vector_of

MAX_LABELS = 128
Texts = Annotated[list[str], msgspec.Meta(max_length=MAX_INPUTS)]


class Document(msgspec.Struct):
    """A document as an object."""

    text: str


class RerankBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/rerank``, as Cohere and Jina have it."""

    REFUSES: ClassVar[frozenset[str]] = REFUSES | {"rank_fields", "images"}

    query: str
    documents: Annotated[list[str | Document], msgspec.Meta(max_length=MAX_INPUTS)]
    model: str | None = None
    top_n: Dimensions | None = None
    return_documents: bool = False
    max_tokens_per_doc: Dimensions | None = None
    instruct: str | None = None


class ScoreBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/score``: ``query`` and ``items``, or ``text_1`` and ``text_2``."""

    REFUSES: ClassVar[frozenset[str]] = REFUSES | {
        "return_pooled_hidden_states", "return_token_logprobs", "score_extraction_token",
    }  # fmt: skip

    model: str | None = None
    query: str | list[Int64] | None = None
    items: str | list[str | list[Int64]] | None = None
    label_token_ids: Annotated[list[TokenId], msgspec.Meta(max_length=MAX_LABELS)] | None = None
    apply_softmax: bool = False
    item_first: bool = False
    temperature: float = 1.0
    text_1: str | Texts | None = None
    text_2: str | Texts | None = None
    instruct: str | None = None


class ClassifyBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/classify``."""

    REFUSES: ClassVar[frozenset[str]] = REFUSES

    input: str | Texts
    model: str | None = None


class RankCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body: what is sent, and how its answers become scores.

    Attributes:
        requests: Of pairs, one a score; of vectors, the distinct texts.
        pairs: Of vectors: which two of them each score is of; []: each request is a score.
        softens: Whether labels' scores are made to add up to 1.
        temperature: Divides logarithms before that.
        judges: Whether each request asks for a yes or a no.
    """

    requests: list[GenerateRequest]
    pairs: list[tuple[int, int]] = []
    softens: bool = False
    temperature: float = 1.0
    judges: bool = False

    def scores(self, completions: Sequence[Completion], card: ModelCard) -> list[list[float]]:
        """Return the scores of each item: one, or one a label."""
        if self.pairs:
            vectors = [vector_of(completion, card) for completion in completions]
            return [[similarity(vectors[a], vectors[b])] for a, b in self.pairs]
        if card.task == "classify":
            return [class_scores(completion, card) for completion in completions]
        rows = [completion.logprobs.asked[0] for completion in completions]
        if self.judges:
            return [[verdict_score(row, card)] for row in rows]
        if self.softens:
            return [softmax([value / self.temperature for value in row]) for row in rows]
        return [[math.exp(value) for value in row] for row in rows]


def class_scores(completion: Completion, card: ModelCard) -> list[float]:
    """Return what a classifier makes of a text: probabilities, or one unbounded score."""
    return vector_scores(vector_of(completion, card), card)


def vector_scores(vector: array[float], card: ModelCard) -> list[float]:
    """Return what a classifier's numbers stand for: probabilities, or one unbounded score."""
    if len(vector) > 1:
        return softmax(vector)
    return [sigmoid(vector[0])] if card.is_bounded else vector.tolist()


def read_rerank(
    body: RerankBody, card: ModelCard, *, type_stride: int, tenant: str = ""
) -> RankCall:
    """Turn a body of ``/v1/rerank`` into requests.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    refuse_steps(card)
    texts = texts_of(body)
    if not texts:
        raise RequestError("documents is empty.", remedy="Send at least one.", field="documents")
    if card.task == "classify" and len(card.labels) > 1:
        raise RequestError(
            f"The model {card.name!r} has {len(card.labels)} labels; reranking needs one score.",
            remedy="Use /v1/classify, or serve a reranker.",
            field="model",
            code="not_supported",
        )
    refuse_instruct(body.instruct, card)
    kept = body.max_tokens_per_doc
    if card.verdict_ids:
        if kept is not None:
            raise RequestError(
                f"max_tokens_per_doc is {kept}, and the model {card.name!r} reads documents in a"
                " chat: they are not cut.",
                remedy="Leave it out, or send shorter documents.",
                field="max_tokens_per_doc",
                code="not_supported",
            )
        return _judged([body.query] * len(texts), texts, body.instruct, card, "documents", tenant)
    if kept is not None:
        kept = min(kept, card.max_length)
    if card.task == "embed":
        before = card.prompts.get("query", ""), card.prompts.get("document", "")
        prompts = [TextPrompt(before[0] + body.query, keep_first=kept)]
        prompts += [TextPrompt(before[1] + text, keep_first=kept) for text in texts]
        requests = [
            pool_request(prompt, "documents" if place else "query", namespace=tenant)
            for place, prompt in enumerate(prompts)
        ]
        return RankCall(requests=requests, pairs=[(0, n + 1) for n in range(len(texts))])
    requests = [
        pool_request(
            PairPrompt(body.query, text, type_stride, keep_first=kept),
            "documents",
            namespace=tenant,
        )
        for text in texts
    ]
    return RankCall(requests=requests)


def read_score(body: ScoreBody, card: ModelCard, *, type_stride: int, tenant: str = "") -> RankCall:
    """Turn a body of ``/v1/score`` into requests.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    refuse_steps(card)
    has_items = body.query is not None or body.items is not None
    has_texts = body.text_1 is not None or body.text_2 is not None
    if has_items == has_texts:
        raise RequestError(
            "Give either query and items, or text_1 and text_2.",
            remedy="Send one pair of fields.",
            field="query" if has_items or not has_texts else "text_1",
            code="missing_prompt",
        )
    refuse_instruct(body.instruct, card)
    if card.verdict_ids and body.label_token_ids is None:
        left, right = _paired(body)
        return _judged(left, right, body.instruct, card, "text_2" if has_texts else "items", tenant)
    if card.task == "generate":
        return _score_labels(body, card, tenant)
    if body.label_token_ids is not None:
        raise RequestError(
            f"label_token_ids is set, and the model {card.name!r} does not generate (task"
            f" {card.task}).",
            remedy="Leave it out, or serve a model that generates.",
            field="label_token_ids",
            code="not_supported",
        )
    left, right = _paired(body)
    if card.task == "embed":
        texts = list(dict.fromkeys((*left, *right)))
        place = {text: index for index, text in enumerate(texts)}
        return RankCall(
            requests=[pool_request(TextPrompt(t), "text_1", namespace=tenant) for t in texts],
            pairs=[(place[a], place[b]) for a, b in zip(left, right, strict=True)],
        )
    requests = [
        pool_request(PairPrompt(a, b, type_stride), "text_2", namespace=tenant)
        for a, b in zip(left, right, strict=True)
    ]
    return RankCall(requests=requests)


def _judged(
    queries: Sequence[str],
    documents: Sequence[str],
    instruct: str | None,
    card: ModelCard,
    field: str,
    tenant: str,
) -> RankCall:
    """Return requests for the verdict on each document; what they begin with alike is cached."""
    pairs = zip(queries, documents, strict=True)
    return RankCall(
        requests=[
            verdict_request(query, document, instruct, card, field=field, tenant=tenant)
            for query, document in pairs
        ],
        judges=True,
    )


def _paired(body: ScoreBody) -> tuple[list[str], list[str]]:
    """Return first and second texts, equally many."""
    names = ("query", "items") if body.query is not None or body.items is not None else None
    names = names or ("text_1", "text_2")
    columns: list[list[str]] = []
    for name in names:
        value: Any = getattr(body, name)
        texts: list[Any] = [value] if isinstance(value, str) else value or []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise RequestError(
                f"{name} must be a text or a list of texts here.",
                remedy="Send at least one text.",
                field=name,
            )
        columns.append(texts)
    left, right = columns
    if len(left) == 1:
        left = left * len(right)
    if names[0] == "query" and body.item_first:
        left, right = right, left
    if len(left) != len(right):
        raise RequestError(
            f"{names[0]} has {len(left)} texts and {names[1]} {len(right)}.",
            remedy="Send one first text, or as many as there are second ones.",
            field=names[0],
        )
    return left, right


def _score_labels(body: ScoreBody, card: ModelCard, tenant: str) -> RankCall:
    """Return requests for the likelihood of labels after each item; its beginning is cached."""
    if body.query is None or body.items is None:
        raise RequestError(
            "A model that generates scores items: query and items are needed.",
            remedy="Send both.",
            field="query" if body.query is None else "items",
            code="missing_prompt",
        )
    if not body.label_token_ids:
        raise RequestError(
            f"label_token_ids is missing; the model {card.name!r} generates, and scores are the"
            " probabilities of these tokens.",
            remedy="Send the ids of the labels, such as those of yes and no.",
            field="label_token_ids",
        )
    if body.temperature <= 0 or (body.temperature != 1 and not body.apply_softmax):
        raise RequestError(
            f"temperature is {body.temperature}.",
            remedy="Use 1, or a value over 0 with apply_softmax.",
            field="temperature",
        )
    given = [body.items] if isinstance(body.items, str) else body.items
    if not 1 <= len(given) <= MAX_INPUTS:
        raise RequestError(
            f"items has {len(given)} entries; 1 to {MAX_INPUTS} are allowed.",
            remedy="Send several requests.",
            field="items",
        )
    return RankCall(
        requests=[
            GenerateRequest(
                prompt=_joined(body.query, item, body.item_first),
                params=SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True),
                rid=uuid.uuid4().hex,
                logprobs=0,
                asked_ids=body.label_token_ids,
                namespace=tenant,
                names={"input_ids": "items", "token_ids_logprob": "label_token_ids"},
            )
            for item in given
        ],
        softens=body.apply_softmax,
        temperature=body.temperature,
    )


def _joined(
    query: str | list[int], item: str | list[int], item_first: bool
) -> TextPrompt | TokensPrompt:
    if isinstance(query, str) and isinstance(item, str):
        return TextPrompt(item + query if item_first else query + item)
    if isinstance(query, str) or isinstance(item, str):
        raise RequestError(
            "query and items mix text and token ids.",
            remedy="Send one kind.",
            field="items",
            code="invalid_type",
        )
    return TokensPrompt(item + query if item_first else query + item)


def read_classify(body: ClassifyBody, card: ModelCard, tenant: str = "") -> RankCall:
    """Turn a body of ``/v1/classify`` into requests.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    refuse_steps(card)
    if card.task == "embed":
        raise RequestError(
            f"The model {card.name!r} embeds texts (task embed); it has no labels.",
            remedy="Use /v1/embeddings, or serve a classifier.",
            field="model",
            code="not_supported",
        )
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts:
        raise RequestError("input is empty.", remedy="Send at least one text.", field="input")
    return RankCall(
        requests=[pool_request(TextPrompt(text), "input", namespace=tenant) for text in texts]
    )


def refuse_steps(card: ModelCard) -> None:
    """Refuse to score texts as wholes with a model that scores the steps of one.

    Raises:
        RequestError: Naming the routes that it has.
    """
    if card.scores_steps:
        raise RequestError(
            f"The model {card.name!r} scores each step of an answer, not the whole.",
            remedy="Use /classify or /pooling.",
            field="model",
            code="not_supported",
        )


def texts_of(body: RerankBody) -> list[str]:
    """Return the documents' texts."""
    return [item if isinstance(item, str) else item.text for item in body.documents]


def rerank_answer(
    body: RerankBody, call: RankCall, completions: Sequence[Completion], card: ModelCard
) -> dict[str, Any]:
    """Return the answer of ``/v1/rerank``, the best document first."""
    scores = [row[0] for row in call.scores(completions, card)]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    texts = texts_of(body)
    results: list[dict[str, Any]] = []
    for index in order:
        result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if body.return_documents:
            result["document"] = {"text": texts[index]}
        results.append(result)
    usage = usage_of(completions)
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": card.name,
        "results": results,
        "usage": usage,
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": usage.prompt_tokens},
        },
    }


def score_answer(
    body: ScoreBody,
    call: RankCall,
    completions: Sequence[Completion],
    card: ModelCard,
    created: int,
) -> dict[str, Any]:
    """Return the answer of ``/v1/score``: nested lists for items, a list of objects for texts."""
    scores = call.scores(completions, card)
    usage = usage_of(completions)
    if body.query is not None:
        return {"object": "scoring", "scores": scores, "model": card.name, "usage": usage}
    data = [
        {"index": index, "object": "score", "score": row[0] if len(row) == 1 else row}
        for index, row in enumerate(scores)
    ]
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": created,
        "model": card.name,
        "data": data,
        "usage": usage,
    }


def classify_answer(
    completions: Sequence[Completion], card: ModelCard, created: int
) -> dict[str, Any]:
    """Return the answer of ``/v1/classify``: each text's likeliest label and all probabilities."""
    data: list[dict[str, Any]] = []
    for index, completion in enumerate(completions):
        probs = class_scores(completion, card)
        best = max(range(len(probs)), key=probs.__getitem__)
        label = card.labels[best] if best < len(card.labels) else str(best)
        data.append({"index": index, "label": label, "probs": probs, "num_classes": len(probs)})
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": created,
        "model": card.name,
        "data": data,
        "usage": usage_of(completions),
    }
