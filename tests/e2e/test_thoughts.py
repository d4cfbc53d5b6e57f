"""A model that thinks until it is made to answer: random weights, and marks that are tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

import headstock
from tests.e2e.tiny import CONFIG
from tests.server.toy_tokenizer import toy_backend

TEMPLATE = (
    "{% for message in messages %}{{ message.role + ':' + message.content }}{% endfor %}"
    "{{ reasoning_effort }}"
    "{% if add_generation_prompt %}assistant:{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
WORDS: dict[str, Any] = {"messages": [{"role": "user", "content": "How many?"}]}
WORDS |= {"max_tokens": 60, "temperature": 1, "seed": 5, "return_token_ids": True}
WORDS |= {"logit_bias": {"260": -1e6}}  # no end of thoughts by itself
THINKS: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}
BUDGETS = ("thinking_budget", "thinking_token_budget", "max_thinking_tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thinking")
    backend = toy_backend()
    backend.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    backend.save(str(path / "tokenizer.json"))
    config = CONFIG | {"vocab_size": backend.get_vocab_size(), "eos_token_id": 1}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[headstock.Engine]:
    with headstock.Engine(
        model=str(folder),
        load_format="dummy",
        backend="reference",
        dtype="float32",
        cache_tokens=2048,
    ) as made:
        yield made


def ask(engine: headstock.Engine, path: str = "/v1/chat/completions", **more: Any) -> Any:
    status, answer = asyncio.run(engine.async_request(path, {**WORDS, **more}))
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("name", BUDGETS)
def test_thoughts_end_at_their_budget(engine: headstock.Engine, folder: Path, name: str) -> None:
    end = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-1]
    assert end["content"] == "</think>"
    free = ask(engine, **THINKS)["choices"][0]["token_ids"]
    assert end["id"] not in free
    for budget in (0, 7):
        more: dict[str, Any] = {**THINKS, name: budget}
        answer = ask(engine, **more)
        ids = answer["choices"][0]["token_ids"]
        assert ids[: budget + 1] == [*free[:budget], end["id"]]
        assert ids.count(end["id"]) == 1
        details = answer["usage"]["completion_tokens_details"]
        assert details["reasoning_tokens"] == budget + 1


def test_responses_messages_and_native_generation_take_a_budget(engine: headstock.Engine) -> None:
    bias = {"logit_bias": {"260": -1e6}}  # only these two routes take one
    chat = ask(engine, **THINKS, thinking_budget=5)["choices"][0]
    assert len(chat["message"]["reasoning_content"]) > 0
    said: Any = {"model": "default", "temperature": 1, **THINKS}
    ended = 0
    for name in BUDGETS:
        body = {**said, "input": "How many?", "max_output_tokens": 60, name: 5}
        status, answer = asyncio.run(engine.async_request("/v1/responses", body))
        assert status == 200, answer
        assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] <= 6
        ended += answer["usage"]["output_tokens_details"]["reasoning_tokens"] == 6
    assert ended
    turn = {"max_tokens": 60, "messages": WORDS["messages"], "temperature": 1}
    turn |= {"thinking": {"type": "enabled", "budget_tokens": 5}}
    status, answer = asyncio.run(engine.async_request("/v1/messages", turn))
    assert status == 200, answer
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
    how = {"max_new_tokens": 40, "temperature": 1, "sampling_seed": 5, **bias}
    native: Any = {"text": "How many?<think>", "sampling_params": how, "max_thinking_tokens": 5}
    status, answer = asyncio.run(engine.async_request("/generate", native))
    assert status == 200, answer
    assert answer["output_ids"].index(260) == 5


def test_a_native_grammar_may_bind_what_follows_the_thoughts(engine: headstock.Engine) -> None:
    how = {"max_new_tokens": 40, "temperature": 1, "json_schema": '{"enum": [1, 2, 3]}'}
    native: Any = {"text": "How many?<think>", "sampling_params": how, "max_thinking_tokens": 5}
    status, answer = asyncio.run(
        engine.async_request("/generate", {**native, "require_reasoning": True})
    )
    assert status == 200, answer
    thought, _, words = answer["text"].partition("</think>")
    assert thought
    assert words.strip() in ("1", "2", "3")


@pytest.mark.parametrize("effort", ["none", "low", "high", 0.5])
def test_an_effort_reaches_the_template_of_every_chat(
    engine: headstock.Engine, effort: Any
) -> None:
    def prompt(path: str, body: dict[str, Any]) -> int:
        status, answer = asyncio.run(engine.async_request(path, body))
        assert status == 200, answer
        usage = answer["usage"]
        return usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"]

    messages, shown = WORDS["messages"], len(str(effort))
    for path, body, field in (
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 1}, "reasoning_effort"),
        ("/v1/responses", {"input": "How many?", "max_output_tokens": 1}, "reasoning"),
        ("/v1/messages", {"messages": messages, "max_tokens": 1}, "output_config"),
    ):
        if field != "reasoning_effort" and not isinstance(effort, str):
            continue  # numbers are SGLang's, on its chats
        given = effort if field == "reasoning_effort" else {"effort": effort}
        assert prompt(path, {**body, field: given}) == prompt(path, body) + shown


def test_a_budget_inside_thinking_and_with_a_form_of_the_answer(engine: headstock.Engine) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2, 3]}}}
    thinking = {"type": "enabled", "budget_tokens": 5}
    answer = ask(engine, **THINKS, thinking=thinking, response_format=form)
    message = answer["choices"][0]["message"]
    assert message["content"].strip() in ("1", "2", "3")
    assert message["reasoning_content"]


def test_an_effort_of_none_thinks_nothing(engine: headstock.Engine) -> None:
    on = ask(engine, thinking={"type": "enabled"})["usage"]["prompt_tokens"]
    off = ask(engine, reasoning_effort="none")["usage"]["prompt_tokens"]
    assert on == off + 1 - len("none")  # the template shows the effort, a token a letter


def test_a_budget_that_cannot_be_is_refused(engine: headstock.Engine) -> None:
    for more in ({"thinking_budget": -1}, {"thinking_budget": 1, "max_thinking_tokens": 2}):
        status, answer = asyncio.run(
            engine.async_request("/v1/chat/completions", {**WORDS, **more})
        )
        assert status == 400
        assert answer["error"]["param"] in BUDGETS
