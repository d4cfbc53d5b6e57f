"""``/v1/score``, ``/v1/rerank``, ``/v1/classify``: texts to scores."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, now, tenant_of
from headstock.server.http.schema import body_of
from headstock.server.protocols import ranking
from headstock.server.protocols.ranking import ClassifyBody, RerankBody, ScoreBody


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["ranking"])

    async def rerank(request: Request) -> Response:
        """Return documents in the order of what they have to do with a query."""
        body = await read_body(request, RerankBody, serving.max_body_bytes)
        card, stride = serving.frontdoor.served_card, serving.frontdoor.type_stride
        call = ranking.read_rerank(body, card, type_stride=stride, tenant=tenant_of(request))
        found = (await serving.whole(request, call.requests)).completions
        return json_answer(ranking.rerank_answer(body, call, found, card))

    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        extra = body_of(RerankBody)
        router.add_api_route(path, rerank, methods=["POST"], openapi_extra=extra)
    router.add_api_route("/v1/rerank", rerank, methods=["PUT"], openapi_extra=body_of(RerankBody))

    @router.post("/score", openapi_extra=body_of(ScoreBody))
    @router.post("/v1/score", openapi_extra=body_of(ScoreBody))
    async def score(request: Request) -> Response:
        """Return scores of pairs of texts, or of labels after a text."""
        body = await read_body(request, ScoreBody, serving.max_body_bytes)
        card, stride = serving.frontdoor.served_card, serving.frontdoor.type_stride
        call = ranking.read_score(body, card, type_stride=stride, tenant=tenant_of(request))
        found = (await serving.whole(request, call.requests)).completions
        return json_answer(ranking.score_answer(body, call, found, card, now()))

    @router.post("/v1/classify", openapi_extra=body_of(ClassifyBody))
    async def classify(request: Request) -> Response:
        """Return the likeliest label of each text."""
        body = await read_body(request, ClassifyBody, serving.max_body_bytes)
        card = serving.frontdoor.served_card
        call = ranking.read_classify(body, card, tenant_of(request))
        found = (await serving.whole(request, call.requests)).completions
        return json_answer(ranking.classify_answer(found, card, now()))

    return router
