"""The default model behind the real server, on the backend that this machine serves with."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from tests.e2e.served import Served

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CLIENTS = 64
OUTPUTS = 24


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_the_openai_client_streams_a_sensible_answer(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    stream = client.chat.completions.create(
        model=model.id, messages=QUESTION, stream=True, max_tokens=24, temperature=0
    )
    pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3


def test_a_streamed_answer_is_the_whole_one(client: openai.OpenAI) -> None:
    ask = {"model": "", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    ask["model"] = client.models.list().data[0].id
    whole = client.chat.completions.create(**ask).choices[0]
    chunks = [c for c in client.chat.completions.create(**ask, stream=True) if c.choices]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_a_completion_goes_on_from_its_prompt(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    answer = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2
    )
    assert "Paris" in answer.choices[0].text
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)


def test_generate_says_how_much_of_a_prompt_was_cached(server: Served) -> None:
    ask = {"text": "Count with me: " + "one two three " * 40}
    ask |= {"sampling_params": {"max_new_tokens": 4, "temperature": 0}}
    cold = server.post("/generate", **ask).json()
    warm = server.post("/generate", **ask).json()
    assert warm["output_ids"] == cold["output_ids"]
    assert cold["meta_info"]["cached_tokens"] == 0
    page = 16
    assert warm["meta_info"]["cached_tokens"] >= warm["meta_info"]["prompt_tokens"] - 2 * page


async def many(url: str) -> tuple[int, int]:
    """Stream to 64 clients, every third of which leaves after three events.

    Returns:
        How many got a whole answer, and how many left.
    """
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(limits=limits, timeout=60) as http:

        async def one(number: int) -> bool:
            ask = {"text": f"Tell me about the number {number}. " * (1 + number % 7)}
            ask |= {
                "stream": True,
                "sampling_params": {"max_new_tokens": OUTPUTS, "ignore_eos": True},
            }
            async with http.stream("POST", f"{url}/generate", json=ask) as answer:
                assert answer.status_code == 200
                events = 0
                async for line in answer.aiter_lines():
                    events += line.startswith("data: {")
                    if number % 3 == 0 and events == 3:
                        return False
                    if line.startswith("data: {"):
                        last = json.loads(line[6:])
            assert last["meta_info"]["finish_reason"] == {"type": "length", "length": OUTPUTS}
            assert len(last["output_ids"]) == OUTPUTS
            return True

        ends = await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return sum(ends), len(ends) - sum(ends)


def test_no_page_is_lost_when_a_third_of_64_clients_disconnect(server: Served) -> None:
    before = server.idle_state()["totals"]
    assert asyncio.run(many(server.url)) == (42, 22)
    state = server.idle_state()
    assert state["free_pages"] + state["cached_pages"] == state["total_pages"]
    totals = {name: state["totals"][name] - before[name] for name in before}
    assert totals["requests_submitted"] == CLIENTS
    assert totals["requests_abort"] == 22
    assert totals["requests_length"] == 42


def test_a_flush_frees_every_page(server: Served) -> None:
    server.post("/generate", text="a b c " * 50, sampling_params={"max_new_tokens": 2})
    server.idle_state()
    assert server.post("/flush_cache").json()["success"]
    state = server.idle_state()
    assert state["free_pages"] == state["total_pages"]


BAD = {
    "an unknown sampling field": ("/generate", {"text": "a", "sampling_params": {"temp": 1}}),
    "a wrong type": ("/v1/completions", {"prompt": "a", "max_tokens": "many"}),
    "no completions": ("/v1/chat/completions", {"messages": QUESTION, "n": 0}),
    "an unknown model": ("/v1/completions", {"prompt": "a", "model": "nobody"}),
    "a prompt past the context": ("/generate", {"text": "word " * 3000}),
    "an id past the vocabulary": ("/generate", {"input_ids": [49152]}),
    "what is not there yet": ("/v1/chat/completions", {"messages": QUESTION, "tools": [{}]}),
    "too hot": ("/generate", {"text": "a", "sampling_params": {"temperature": -1}}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_else_is_lost(server: Served, name: str) -> None:
    path, body = BAD[name]
    answer = server.post(path, **body)
    assert 400 <= answer.status_code < 500
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    good = server.post("/generate", text="a", sampling_params={"max_new_tokens": 1})
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("body", "status"), [(b"x" * (10 << 20), 413), (b"{", 400), (b'{"text":"\xff"}', 400)]
)
def test_a_body_that_is_no_request_is_refused(server: Served, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/generate", content=body, headers=headers, timeout=20)
    assert answer.status_code == status
    assert server.is_ready()


def test_probes_are_not_in_the_log_and_requests_are(server: Served) -> None:
    server.get("/ready")
    server.post("/tokenize", prompt="a")
    assert "POST /tokenize 200" in server.log
    assert "GET /ready" not in server.log


def test_the_banner_has_what_an_operator_needs(server: Served) -> None:
    for words in ("memory: weights", "memory: KV cache", "ops ..", "device ..", "curl http://"):
        assert words in server.log
