"""A mixed load: what clients of every kind send, the rude ones too."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

WORDS = [
    "river", "stone", "lamp", "winter", "engine", "quiet", "paper", "garden", "metal", "cloud",
    "seven", "often", "carries", "because", "under", "between", "signal", "mirror", "copper",
    "window", "early", "broad", "gentle", "travel", "number", "forest", "handle",
]  # fmt: skip
SYSTEM = "You answer in few words. " + " ".join(WORDS * 6)
"""A long beginning that many requests share."""
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool.function | tojson }}"
    "{% endfor %}</tools> Call one as <tool_call>{name, arguments}</tool_call>.<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The small model's own template knows no tools."""
BAD: list[tuple[str, bytes]] = [
    ("/v1/chat/completions", b'{"messages":'),
    ("/v1/chat/completions", b'{"messages":[]}'),
    ("/v1/completions", b'{"prompt":"x","max_tokens":-4}'),
    ("/v1/completions", b'{"prompt":"x","priority":18446744073709551616}'),
    ("/generate", b'{"text":"x","sampling_params":{"stop_regex":"(?:a{60000}){60000}"}}'),
    ("/generate", b'{"text":"\\ud800"}'),
    ("/generate", b"[" * 5000),
    ("/v1/messages", b'{"messages":[{"role":"robot","content":"x"}],"max_tokens":2}'),
    ("/no/such/route", b"{}"),
]


class Load:
    """Sends requests of random kinds, and counts what came of each.

    Args:
        client: To the server.
        seed: Of all that is random.
    """

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)
        self._number = 0
        self.answers: Counter[str] = Counter()
        """By kind and outcome."""
        self.server_errors: list[str] = []
        self.kinds: list[Callable[[], Awaitable[str]]] = [
            self.chat, self.chat, self.stream, self.stream, self.dropped_stream, self.completion,
            self.native, self.schema, self.pattern, self.tools, self.several, self.messages,
            self.responses, self.ollama, self.aborted, self.refused, self.refused, self.embeddings,
        ]  # fmt: skip

    async def one(self) -> None:
        """Send a request of some kind and count its outcome."""
        send = self._random.choice(self.kinds)
        try:
            outcome = await send()
        except httpx.HTTPError as error:
            outcome = type(error).__name__
            self.server_errors.append(f"{send.__name__}: {error!r}")
        self.answers[f"{send.__name__} {outcome}"] += 1

    def words(self, least: int, most: int) -> str:
        count = self._random.randint(least, most)
        return " ".join(self._random.choice(WORDS) for _ in range(count))

    def chat_body(self, **more: Any) -> dict[str, Any]:
        turns = [{"role": "system", "content": SYSTEM[: self._random.choice([24, 400, 900])]}]
        turns.append({"role": "user", "content": self.words(3, 60)})
        return {"messages": turns, "max_tokens": self._random.randint(1, 24), **more}

    async def ask(self, path: str, body: dict[str, Any]) -> str:
        answer = await self._client.post(path, json=body)
        return self._outcome(answer, path)

    def _outcome(self, answer: httpx.Response, path: str) -> str:
        if answer.status_code >= 500:
            self.server_errors.append(f"{path}: {answer.status_code} {answer.text[:300]}")
        return str(answer.status_code)

    async def follow(self, path: str, body: dict[str, Any], leave_after: int | None = None) -> str:
        """Take a stream to its end, or leave it after so many events."""
        async with self._client.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return self._outcome(answer, path)
            count, is_whole = 0, False
            async for line in answer.aiter_lines():
                count += line.startswith("data:")
                is_whole = is_whole or line == "data: [DONE]"
                if leave_after is not None and count >= leave_after:
                    return "left"
            if not is_whole:
                self.server_errors.append(f"{path}: a stream without its end")
            return "whole" if is_whole else "cut"

    async def chat(self) -> str:
        return await self.ask("/v1/chat/completions", self.chat_body(temperature=0.7))

    async def stream(self) -> str:
        options = {"include_usage": True}
        body = self.chat_body(stream=True, stream_options=options, logprobs=True, top_logprobs=2)
        return await self.follow("/v1/chat/completions", body)

    async def dropped_stream(self) -> str:
        body = self.chat_body(stream=True) | {"max_tokens": 200}
        return await self.follow("/v1/chat/completions", body, self._random.randint(0, 20))

    async def completion(self) -> str:
        body = {"prompt": self.words(2, 200), "max_tokens": 8, "logprobs": 2, "echo": True}
        return await self.ask("/v1/completions", body)

    async def native(self) -> str:
        sampling = {"max_new_tokens": 12, "stop_regex": "[0-9]{3}", "top_k": 5, "min_p": 0.01}
        return await self.ask("/generate", {"text": self.words(2, 80), "sampling_params": sampling})

    async def schema(self) -> str:
        size = self._random.randint(3, 12)  # most are new to the compiler's cache
        named = SCHEMA["properties"] | {"name": {"type": "string", "maxLength": size}}  # type: ignore[operator]
        shape = {"name": "person", "schema": SCHEMA | {"properties": named}, "strict": True}
        bound = {"type": "json_schema", "json_schema": shape}
        body = self.chat_body(response_format=bound) | {"max_tokens": 32}
        return await self.ask("/v1/chat/completions", body)

    async def pattern(self) -> str:
        sampling = {"max_new_tokens": 8, "regex": f"[a-z]{{1,{self._random.randint(2, 40)}}}"}
        return await self.ask("/generate", {"text": "A word:", "sampling_params": sampling})

    async def tools(self) -> str:
        body = self.chat_body(tools=[TOOL], tool_choice="required") | {"max_tokens": 48}
        return await self.ask("/v1/chat/completions", body)

    async def several(self) -> str:
        body = {"prompt": [self.words(2, 20), self.words(2, 20)], "n": 3, "max_tokens": 4}
        return await self.ask("/v1/completions", body)

    async def messages(self) -> str:
        turns = [{"role": "user", "content": self.words(2, 40)}]
        return await self.ask("/v1/messages", {"messages": turns, "max_tokens": 8})

    async def responses(self) -> str:
        body = {"input": self.words(2, 40), "max_output_tokens": 8, "store": True}
        return await self.ask("/v1/responses", body)

    async def ollama(self) -> str:
        models = (await self._client.get("/v1/models")).json()["data"]
        body = {"model": models[0]["id"], "prompt": "hi", "options": {"num_predict": 4}}
        return await self.ask("/api/generate", {**body, "stream": False})

    async def aborted(self) -> str:
        self._number += 1
        name = f"soak-{self._number}"
        sampling = {"max_new_tokens": 300, "ignore_eos": True}
        asked = asyncio.create_task(
            self.ask("/generate", {"text": "On", "rid": name, "sampling_params": sampling})
        )
        await asyncio.sleep(self._random.uniform(0.0, 0.5))
        await self.ask("/abort_request", {"rid": name})
        return await asked

    async def refused(self) -> str:
        path, content = self._random.choice(BAD)
        headers = {"content-type": "application/json"}
        answer = await self._client.post(path, content=content, headers=headers)
        if answer.status_code < 400 or "error" not in json.loads(answer.text):
            self.server_errors.append(f"{path}: {content[:60]!r} was answered {answer.text[:200]}")
        return self._outcome(answer, path)

    async def embeddings(self) -> str:
        """A generative model refuses it."""
        return await self.ask("/v1/embeddings", {"input": self.words(1, 9), "model": "x"})
