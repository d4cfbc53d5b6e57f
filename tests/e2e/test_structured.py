"""Outputs bound to grammars, over HTTP, with the default model: the docs' examples, and crowds."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.served import Served
from tests.structured.hostile import COMPILED, REFUSED_AT_ONCE

PAGE = Path(__file__).parents[2] / "docs" / "structured-outputs.md"
BLOCK = re.compile(r"^```http\nPOST (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [(path, json.loads(body)) for path, body in BLOCK.findall(PAGE.read_text("utf-8"))]
FREE = 8
BOUND = 8


def is_pet(text: str) -> bool:
    pet = json.loads(text)
    assert list(pet) == ["name", "age", "color"]
    assert isinstance(pet["name"], str)
    return 0 <= pet["age"] <= 30 and pet["color"] in ("black", "white", "orange")


def is_pair(text: str) -> bool:
    numbers = json.loads(text)
    return 2 <= len(numbers) <= 3 and all(isinstance(number, int) for number in numbers)


def is_free_until_a_call(text: str) -> bool:
    for call in re.findall(r"<function=get_weather>(.*?)</function>", text):
        assert isinstance(json.loads(call)["city"], str)
    return True


CHECKS: list[Callable[[str], Any]] = [
    is_pet,
    is_pair,
    re.compile("[0-2][0-9]:[0-5][0-9]").fullmatch,
    ["yes", "no"].__contains__,
    re.compile(r"[1-9][0-9]?( \+ [1-9][0-9]?){1,3}").fullmatch,
    is_free_until_a_call,
    re.compile("<note>[a-z ]{1,20}</note>-?[0-9]+").fullmatch,
]


def text_of(answer: httpx.Response) -> str:
    found = answer.json()
    assert answer.status_code == 200, found
    if "text" in found:
        return found["text"]
    (choice,) = found["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize("number", range(len(CHECKS)))
def test_the_examples_of_the_page_are_answered_as_it_says(server: Served, number: int) -> None:
    assert len(EXAMPLES) == len(CHECKS)
    path, body = EXAMPLES[number]
    text = text_of(server.post(path, **body))
    assert CHECKS[number](text), text


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5])
def test_a_schema_always_parses(server: Served, temperature: float) -> None:
    path, body = EXAMPLES[0]
    body = body | {"temperature": temperature, "n": 4, "seed": 11}
    answer = server.post(path, **body).json()
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        assert is_pet(choice["message"]["content"])
        assert choice["matched_stop"] is None


def test_any_json_object_is_one(server: Served) -> None:
    body = {
        "messages": [{"role": "user", "content": "Give a short JSON object about Paris."}],
        "max_tokens": 60, "temperature": 0, "response_format": {"type": "json_object"},
    }  # fmt: skip
    (choice,) = server.post("/v1/chat/completions", **body).json()["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].lstrip().startswith("{")


def test_without_eos_the_output_ends_where_its_grammar_does(server: Served) -> None:
    params = {"regex": "[a-z]{5}", "ignore_eos": True, "max_new_tokens": 50}
    answer = server.post("/generate", text="Word: ", sampling_params=params).json()
    assert re.fullmatch("[a-z]{5}", answer["text"])
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": None}


def test_penalties_biases_and_logprobs_go_with_a_grammar(server: Served) -> None:
    params = {
        "regex": "(ab){3}", "repetition_penalty": 1.5, "frequency_penalty": 1.0,
        "min_new_tokens": 3, "max_new_tokens": 50, "logit_bias": {"5": 50.0},
    }  # fmt: skip
    body = {"sampling_params": params, "return_logprob": True, "top_logprobs_num": 2}
    answer = server.post("/generate", text="x", **body).json()
    assert answer["text"] == "ababab"
    assert len(answer["meta_info"]["output_token_logprobs"]) == len(answer["output_ids"])


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_compiler_refuses_is_a_400_with_its_reason(server: Served, stream: bool) -> None:
    answer = server.post("/v1/completions", prompt="x", guided_regex="(?=a)b", stream=stream)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("guided_regex", "invalid_grammar")
    assert "look-ahead" in error["message"]


async def streamed(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    """Return the text of a streamed answer."""
    text = ""
    async with http.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                delta = event["choices"][0]
                piece = delta["delta"].get("content") if "delta" in delta else delta["text"]
                text += piece or ""
    return text


def free(number: int) -> tuple[str, dict[str, Any]]:
    prompt = f"Number {number} is special since"
    body = {"prompt": prompt, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    return "/v1/completions", body


def test_sixteen_mixed_streams_obey_and_do_not_disturb_each_other(server: Served) -> None:
    async def run(calls: list[tuple[str, dict[str, Any]]]) -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            return await asyncio.gather(*(streamed(http, *call) for call in calls))

    openai = [(n, *EXAMPLES[n]) for n in (0, 3, 4)]
    bound = [openai[number % len(openai)] for number in range(BOUND)]
    alone = asyncio.run(run([free(number) for number in range(FREE)]))
    mixed = asyncio.run(
        run(
            [
                call
                for number in range(FREE)
                for call in (free(number), (bound[number][1], bound[number][2] | {"seed": number}))
            ]
        )
    )
    assert mixed[::2] == alone
    for (number, *_), text in zip(bound, mixed[1::2], strict=True):
        assert CHECKS[number](text), text


def test_hostile_grammars_end_within_their_limits_while_streams_go_on(server: Served) -> None:
    async def hostile(http: httpx.AsyncClient, kind: str, text: str) -> tuple[int, str, float]:
        begin_s = time.monotonic()
        field = {"choice": "guided_choice", "json_schema": "guided_json"}.get(kind, kind)
        value = json.loads(text) if kind == "choice" else text
        body = {"prompt": "x", "max_tokens": 2, field: value}
        answer = await http.post(
            "/v1/completions",
            content=json.dumps(body),
            headers={"content-type": "application/json"},
        )
        error = answer.json().get("error", {})
        if answer.status_code != 200:
            assert error["param"] == field or error["code"] in ("invalid_json",), error
        return answer.status_code, error.get("code", ""), time.monotonic() - begin_s

    async def run() -> tuple[list[str], list[tuple[int, str, float]]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            streams = [asyncio.ensure_future(streamed(http, *free(n))) for n in range(FREE)]
            attacks = [(kind, text) for kind, text, _ in REFUSED_AT_ONCE.values()]
            answers = await asyncio.gather(
                *(hostile(http, *attack) for attack in [*attacks, *COMPILED.values()])
            )
            return await asyncio.gather(*streams), answers

    texts, answers = asyncio.run(run())
    assert all(texts)
    for status, code, _ in answers[: len(REFUSED_AT_ONCE)]:
        assert status == 400, code
    for status, code, _ in answers:
        assert status in (200, 400)
        assert status == 200 or code in ("invalid_grammar", "grammar_too_complex", "invalid_json")
    (again,) = server.post("/v1/completions", prompt="x", max_tokens=1).json()["choices"]
    assert again["finish_reason"] == "length"
    forks = [c for c in compilers(server) if c.children()]
    assert not forks, "a grammar is still being compiled"


def compilers(server: Served) -> list[psutil.Process]:
    children = psutil.Process(server.engine_pid).children()
    return [child for child in children if "headstock.structured.process" in child.cmdline()]


def test_an_engine_starts_one_process_for_grammars_and_ends_it(server: Served) -> None:
    server.post("/generate", text="x", sampling_params={"regex": "a", "max_new_tokens": 2})
    (compiler,) = compilers(server)
    compiler.kill()
    params = {"regex": "b[0-9]", "max_new_tokens": 8}
    answer = server.post("/generate", text="x", sampling_params=params)
    if answer.status_code == 503:  # it came before the loss was seen
        answer = server.post("/generate", text="x", sampling_params=params)
    assert re.fullmatch("b[0-9]", answer.json()["text"])
