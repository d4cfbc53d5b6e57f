"""Routes that turn text into tokens and back, and tell the parts of a text."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.requests.sampling import TokenId, check_token_id
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import body_bytes, off_loop, read_body
from headstock.server.http.context import Serving
from headstock.server.http.schema import body_of
from headstock.server.protocols import native_bodies
from headstock.server.protocols.messages import ChatMessage, Tool, flat_messages, read_tools
from headstock.server.request import ChatPrompt, Prompt, TextPrompt
from headstock.server.speech import parted
from headstock.text.parsers.formats import Format, find_format

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


class ParseBody(msgspec.Struct):
    """Body of ``/parse_function_call``."""

    text: str
    tool_call_parser: str
    tools: list[Tool] = []


class SeparateBody(msgspec.Struct):
    """Body of ``/separate_reasoning``."""

    text: str
    reasoning_parser: str


def make_router(serving: Serving) -> APIRouter:
    """Return the routes of tokens."""
    router = APIRouter(tags=["native"])
    frontdoor = serving.frontdoor

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


def make_parsers(serving: Serving) -> APIRouter:
    """Return the routes that tell the parts of a text."""
    router = APIRouter(tags=["native"])
    known = serving.frontdoor.prompter.dialect.formats

    @router.post("/parse_function_call", openapi_extra=body_of(ParseBody))
    async def parse_function_call(request: Request) -> Response:
        """Return the calls in a text, and what is left of it."""
        body = await read_body(request, ParseBody, serving.max_body_bytes)
        calls = _format(known.calls, "tool_call_parser", body.tool_call_parser)
        tools = {tool["function"]["name"]: tool["function"] for tool in read_tools(body.tools)}
        schemas = {name: function["parameters"] for name, function in tools.items()}
        text, _, found = await off_loop(
            body_bytes(request), parted, body.text, None, calls, schemas
        )
        order = list(tools)
        return json_answer(
            {
                "normal_text": text,
                "calls": [
                    {
                        "tool_index": order.index(call.name) if call.name in tools else -1,
                        "name": call.name,
                        "parameters": call.arguments,
                    }
                    for call in found
                ],
            }
        )

    @router.post("/separate_reasoning", openapi_extra=body_of(SeparateBody))
    async def separate_reasoning(request: Request) -> Response:
        """Return the thoughts in a text, and the rest."""
        body = await read_body(request, SeparateBody, serving.max_body_bytes)
        reasoning = _format(known.reasoning, "reasoning_parser", body.reasoning_parser)
        is_thinking = reasoning.begin not in body.text and reasoning.end in body.text
        read = partial(parted, is_thinking=is_thinking)
        text, thoughts, _ = await off_loop(
            body_bytes(request), read, body.text, reasoning, None, {}
        )
        return json_answer({"reasoning_text": thoughts, "text": text})

    return router


def _format(formats: tuple[Format, ...], field: str, name: str) -> Format:
    found = find_format(name, formats)
    if found is None:
        raise RequestError(
            f"{field} is {name[:64]!r}.",
            remedy=f"Use one of {', '.join(known.name for known in formats)}.",
            field=field,
        )
    return found


def _detokenize(frontdoor: Frontdoor, body: DetokenizeBody) -> Response:
    tokenizer = frontdoor.prompter.tokenizer
    if tokenizer is None:
        raise RequestError(
            "This server was started without a tokenizer.",
            remedy="Start it without --skip-tokenizer-init.",
            code="no_tokenizer",
        )
    rows, is_list = native_bodies.id_rows("tokens", body.tokens)
    if len(rows) > native_bodies.MAX_PROMPTS:
        raise RequestError(
            f"tokens has {len(rows)} lists; at most {native_bodies.MAX_PROMPTS}.",
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
    if not 1 <= len(texts) <= native_bodies.MAX_PROMPTS:
        raise RequestError(
            f"prompt has {len(texts)} items; 1 to {native_bodies.MAX_PROMPTS} are allowed.",
            remedy="Send several requests.",
            field="prompt",
        )
    prompts: list[Prompt] = [TextPrompt(text, body.add_special_tokens) for text in texts]
    return prompts, not isinstance(body.prompt, str)
