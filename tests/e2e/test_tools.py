"""Calls of functions that a real model must make, through the clients that people use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.served import SMALL, Served, served

TEMPLATE = (
    "{% if tools %}<|im_start|>system\nAnswer by <tool_call> with JSON. Functions: "
    "{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Graz"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Tells the weather.", "parameters": SCHEMA}
OTHER = {"name": "now", "parameters": {"type": "object", "properties": {}}}
TOOLS: list[Any] = [{"type": "function", "function": each} for each in (FUNCTION, OTHER)]
CHAT: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def speaking(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the default model with a template that shows functions and thoughts."""
    template = tmp_path_factory.mktemp("tools") / "template.jinja"
    Path(template).write_text(TEMPLATE)
    with served(
        model, *SMALL, "--chat-template", str(template), "--served-model-name", "smollm2"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(speaking: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def is_right(name: str, arguments: str) -> bool:
    given = json.loads(arguments)
    if name == "now":
        return isinstance(given, dict)
    return given["city"] in ("Rome", "Graz") and 1 <= given["days"] <= 9 and len(given) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_chat_calls_what_it_must(client: openai.OpenAI, choice: Any, temperature: float) -> None:
    how: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "temperature": temperature}
    how |= {"seed": 3, "max_tokens": 300, "parallel_tool_calls": False}
    answer = client.chat.completions.create(model="smollm2", messages=CHAT, **how)
    message = answer.choices[0].message
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert is_right(call.function.name, call.function.arguments)
    assert choice == "required" or call.function.name == "get_weather"
    assert (answer.choices[0].finish_reason, message.content) == ("tool_calls", None)
    name, arguments = "", ""
    for chunk in client.chat.completions.create(model="smollm2", messages=CHAT, stream=True, **how):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function is not None
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert (name, json.loads(arguments)) == (
        call.function.name,
        json.loads(call.function.arguments),
    )


def test_a_response_calls_what_it_must(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **FUNCTION, "strict": True}]
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        answer = client.responses.create(
            model="smollm2",
            input="What is the weather in Rome?",
            tools=tools,
            tool_choice=choice,  # type: ignore[arg-type]
            parallel_tool_calls=False,
            max_output_tokens=300,
        )
        (item,) = answer.output
        assert item.type == "function_call"
        assert is_right(item.name, item.arguments)


def test_a_message_calls_what_it_must(speaking: Served) -> None:
    tools: Any = [{"name": "get_weather", "input_schema": SCHEMA, "strict": True}]
    with anthropic.Anthropic(base_url=speaking.url, api_key="none", max_retries=0) as client:
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            more: Any = {"tool_choice": {**choice, "disable_parallel_tool_use": True}}
            answer = client.messages.create(
                model="smollm2", max_tokens=300, messages=CHAT, tools=tools, **more
            )
            (block,) = answer.content
            assert block.type == "tool_use"
            assert is_right(block.name, json.dumps(block.input))
            assert answer.stop_reason == "tool_use"


def test_a_strict_function_is_called_by_its_schema_or_not_at_all(client: openai.OpenAI) -> None:
    strict: Any = [{"type": "function", "function": {**FUNCTION, "strict": True}}]
    begun = [*CHAT, {"role": "assistant", "content": "<tool_call>"}]
    for seed in range(4):
        answer = client.chat.completions.create(
            model="smollm2",
            messages=CHAT if seed % 2 else begun,
            tools=strict,
            temperature=1.2,
            seed=seed,
            max_tokens=120,
            parallel_tool_calls=False,
            extra_body={"continue_final_message": seed % 2 == 0},
        )
        for call in answer.choices[0].message.tool_calls or []:
            assert call.type == "function"
            assert is_right(call.function.name, call.function.arguments)


def test_lists_of_ids_bind_what_is_drawn(client: openai.OpenAI) -> None:
    how: Any = {"model": "smollm2", "prompt": "The capital of France is", "temperature": 0}
    ids: Any = {"return_token_ids": True}
    plain = client.completions.create(**how, max_tokens=6, extra_body=ids)
    drawn: list[int] = plain.choices[0].token_ids  # type: ignore[attr-defined]
    few = [drawn[2], drawn[3]]
    bound = client.completions.create(
        **how, max_tokens=6, extra_body={**ids, "allowed_token_ids": few}
    )
    assert set(bound.choices[0].token_ids) <= set(few)  # type: ignore[attr-defined]
    without = client.completions.create(
        **how, max_tokens=6, extra_body={**ids, "bad_words": ["Paris"]}
    )
    assert "Paris" in plain.choices[0].text
    assert "Paris" not in without.choices[0].text


def test_an_answer_has_several_calls_unless_one_is_asked_for(
    client: openai.OpenAI, speaking: Served
) -> None:
    """Whether another call follows the model decides: of some answers, one has several."""
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    other = {"name": "now", "parameters": nothing}
    now: list[Any] = [{"type": "function", "function": other}]
    said: dict[str, Any] = {"model": "smollm2", "temperature": 1}
    chat: dict[str, Any] = {**said, "messages": CHAT, "max_tokens": 90, "tools": now}
    item: dict[str, Any] = {**said, "input": "What time is it?", "max_output_tokens": 90}
    item["tools"] = [{"type": "function", **other}]
    turn: dict[str, Any] = {"model": "smollm2", "messages": CHAT, "max_tokens": 90}
    turn["extra_body"] = {"temperature": 1}
    turn["tools"] = [{"name": "now", "input_schema": nothing}]

    def calls_of(is_parallel: bool) -> list[int]:
        choice: Any = {"tool_choice": "required", "parallel_tool_calls": is_parallel}
        answer = client.chat.completions.create(**chat, **choice)
        response = client.responses.create(**item, **choice)
        any_tool: Any = {"type": "any", "disable_parallel_tool_use": not is_parallel}
        message = maker.messages.create(**turn, tool_choice=any_tool)
        called = [block.name for block in message.content if block.type == "tool_use"]
        assert set(called) == {"now"}
        counts = [len(answer.choices[0].message.tool_calls or []), len(called)]
        return [*counts, sum(one.type == "function_call" for one in response.output)]

    with anthropic.Anthropic(base_url=speaking.url, api_key="none", max_retries=0) as maker:
        for _ in range(3):
            assert calls_of(False) == [1, 1, 1]
        most = [0, 0, 0]
        for _ in range(12):
            most = [max(pair) for pair in zip(most, calls_of(True), strict=True)]
            if min(most) > 1:
                break
        assert min(most) > 1
