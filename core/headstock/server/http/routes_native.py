"""``/generate`` and the tokenizer's routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.requests.sampling import TokenId, check_token_id
from headstock.server.completion import Delta
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import body_bytes, off_loop, read_body
from headstock.server.http.context import Serving, clock, tenant_of
from headstock.server.http.schema import body_of
from headstock.server.protocols import native
from headstock.server.protocols.messages import ChatMessage, Tool, flat_messages, read_tools
from headstock.server.request import ChatPrompt, Prompt, TextPrompt

MAX_DETOKENIZE = 1_000_000


class TokenizeBody(msgspec.Struct):
    """Body of ``/tokenize``: a prompt or messages."""

    prompt: str | list[str] | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None


class DetokenizeBody(msgspec.Struct):
    """Body of ``/detokenize``."""

    tokens: Annotated[list[TokenId | list[TokenId]], msgspec.Meta(max_length=MAX_DETOKENIZE)]
    skip_special_tokens: bool = True


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["native"])
    frontdoor = serving.frontdoor

    @router.put("/generate", include_in_schema=False)
    @router.post("/generate", openapi_extra=body_of(native.GenerateBody))
    async def generate(request: Request) -> Response:
        """Go on from one prompt or several."""
        begun_s = clock()
        body = await read_body(request, native.GenerateBody, serving.max_body_bytes)
        call = await off_loop(body_bytes(request), native.read, body, tenant_of(request))
        rids = [item.rid or "" for item in call.requests for _ in range(item.params.n)]
        tokenizer = frontdoor.prompter.tokenizer
        if call.is_streamed:
            return await serving.stream(
                request,
                call.requests,
                lambda generation: _writers(
                    native.NativeStream(call, generation.completions, rids, tokenizer), begun_s
                ),
            )
        generation = await serving.whole(request, call.requests)
        answers = [
            native.answer(
                completion,
                rid,
                tokenizer,
                wants_text=call.wants_text,
                wants_prompt_ids=call.wants_prompt_ids,
                elapsed_s=clock() - begun_s,
            )
            for completion, rid in zip(generation.completions, rids, strict=True)
        ]
        return json_answer(answers if call.is_batch else answers[0])

    @router.post("/tokenize", openapi_extra=body_of(TokenizeBody))
    @router.post("/v1/tokenize", openapi_extra=body_of(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        """Return the token ids of a prompt or of messages."""
        body = await read_body(request, TokenizeBody, serving.max_body_bytes)
        prompts, is_list = await off_loop(body_bytes(request), _prompts, body)
        rows = [await frontdoor.encode(prompt) for prompt in prompts]
        counts = [len(row) for row in rows]
        return json_answer(
            {
                "tokens": rows if is_list else rows[0],
                "count": counts if is_list else counts[0],
                "max_model_len": frontdoor.max_length,
            }
        )

    @router.post("/detokenize", openapi_extra=body_of(DetokenizeBody))
    @router.post("/v1/detokenize", openapi_extra=body_of(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        """Return the text of token ids."""
        body = await read_body(request, DetokenizeBody, serving.max_body_bytes)
        return await off_loop(body_bytes(request), _detokenize, frontdoor, body)

    return router


def _detokenize(frontdoor: Frontdoor, body: DetokenizeBody) -> Response:
    tokenizer = frontdoor.prompter.tokenizer
    if tokenizer is None:
        raise RequestError(
            "This server was started without a tokenizer.",
            remedy="Start it without --skip-tokenizer-init.",
            code="no_tokenizer",
        )
    rows, is_list = native.id_rows("tokens", body.tokens)
    if len(rows) > native.MAX_PROMPTS:
        raise RequestError(
            f"tokens has {len(rows)} lists; at most {native.MAX_PROMPTS}.",
            remedy="Send several requests.",
            field="tokens",
        )
    for row in rows:
        for token_id in row:
            check_token_id("tokens", token_id, frontdoor.card.vocab_size)
    texts = tokenizer.decode_rows(rows, skip_special_tokens=body.skip_special_tokens)
    return json_answer({"text": texts if is_list else texts[0]})


def _prompts(body: TokenizeBody) -> tuple[list[Prompt], bool]:
    """Return the prompts, and whether they came as a list."""
    if (body.prompt is None) == (body.messages is None):
        raise RequestError(
            "Give exactly one of prompt and messages.",
            remedy="Send text, or a chat.",
            field="prompt",
            code="missing_prompt",
        )
    if body.messages is not None:
        chat = ChatPrompt(
            flat_messages(body.messages),
            tools=read_tools(body.tools),
            extra=body.chat_template_kwargs or {},
            add_generation_prompt=body.add_generation_prompt,
        )
        return [chat], False
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt or []
    if not 1 <= len(texts) <= native.MAX_PROMPTS:
        raise RequestError(
            f"prompt has {len(texts)} items; 1 to {native.MAX_PROMPTS} are allowed.",
            remedy="Send several requests.",
            field="prompt",
        )
    prompts: list[Prompt] = [TextPrompt(text, body.add_special_tokens) for text in texts]
    return prompts, not isinstance(body.prompt, str)


def _writers(
    stream: native.NativeStream, begun_s: float
) -> tuple[Callable[[Sequence[Delta]], bytes], Callable[[], bytes]]:
    def elapsed_s() -> float:
        return clock() - begun_s

    def write(deltas: Sequence[Delta]) -> bytes:
        return b"".join([stream.write(delta, elapsed_s) for delta in deltas])

    return write, lambda: b""
