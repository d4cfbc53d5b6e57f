"""`headstock generate`: rows in, rows out, in order, past bad ones."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headstock.cli import main
from headstock.cli.generate import Job, _format_of, _read
from headstock.errors import ConfigError, RequestError


class FakeEngine:
    """Repeats prompts; the first ones take longest."""

    def __init__(self, code: str = "invalid_value") -> None:
        self.card = SimpleNamespace(sampling_defaults={"top_p": 0.9})
        self.started = SimpleNamespace(limits=SimpleNamespace(num_slots=2))
        self.code = code
        self.num_open = self.most_open = 0

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        return [len(message["content"]) for message in messages]

    async def async_generate(self, **ask: Any) -> Any:
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        await asyncio.sleep(0.02 if ask["prompt"] == "slow" else 0)
        self.num_open -= 1
        if ask["prompt"] == "bad":
            raise RequestError("Bad.", remedy="Be good.", field="prompt", code=self.code)
        count = ask["sampling_params"].get("n", 1)
        results = [{"text": ask["prompt"], "ask": ask} for _ in range(count)]
        return results if count > 1 else results[0]


def answers(
    lines: list[str], kind: Any = "text", *, engine: Any = None, is_chat: bool = False
) -> list[dict[str, Any]]:
    job = Job(engine or FakeEngine(), kind, {"temperature": 0}, is_chat=is_chat)

    async def collect() -> list[dict[str, Any]]:
        return [answer async for group in job.answers(lines) for answer in group]

    return asyncio.run(collect())


def test_answers_are_in_the_order_of_the_rows() -> None:
    assert [a["text"] for a in answers(["slow", "b", "c", "d"])] == ["slow", "b", "c", "d"]


def test_a_bad_row_is_an_error_and_the_others_go_on() -> None:
    first, bad, last = answers(["a", "bad", "c"])
    assert bad == {
        "index": 1,
        "error": {"message": "Bad. Be good.", "field": "prompt", "code": "invalid_value"},
    }
    assert (first["text"], last["text"]) == ("a", "c")


def test_a_lost_engine_is_no_rows_fault() -> None:
    with pytest.raises(RequestError, match="Bad"):
        answers(["a", "bad"], engine=FakeEngine("engine_lost"))


def test_rows_keep_their_id_and_metadata() -> None:
    line = json.dumps({"prompt": "a", "id": None, "metadata": {"k": 1}})
    (answer,) = answers([line], "jsonl")
    assert (answer["id"], answer["metadata"]) == (None, {"k": 1})


def test_a_rows_sampling_wins_over_flags_and_flags_over_the_models() -> None:
    line = json.dumps({"prompt": "a", "sampling_params": {"temperature": 2}})
    (answer,) = answers([line], "jsonl")
    assert answer["ask"]["sampling_params"] == {"top_p": 0.9, "temperature": 2}


def test_several_completions_are_a_line_each() -> None:
    line = json.dumps({"prompt": "a", "sampling_params": {"n": 2}})
    assert [a["completion"] for a in answers([line], "jsonl")] == [0, 1]


def test_messages_and_chat_prompts_go_through_the_template() -> None:
    (answer,) = answers([json.dumps({"messages": [{"role": "user", "content": "four"}]})], "jsonl")
    assert answer["ask"]["input_ids"] == [4]
    (answer,) = answers(["four"], is_chat=True)
    assert answer["ask"]["input_ids"] == [4]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid"),
        ('{"promt":"a"}', "unknown field `promt`"),
        ('{"promt":"a"}', "A row may have prompt, input_ids, messages, sampling_params, id"),
        ("{}", "exactly one of prompt, input_ids and messages"),
        ('{"prompt":"a","input_ids":[1]}', "exactly one"),
        ('{"prompt":3}', "not valid"),
    ],
)
def test_a_row_that_is_none_says_why(line: str, words: str) -> None:
    (answer,) = answers([line], "jsonl")
    assert words in answer["error"]["message"]


def test_no_more_rows_are_open_than_the_engine_can_use() -> None:
    engine = FakeEngine()
    answers(["slow"] * 20, engine=engine)
    assert engine.most_open == 4


def test_the_format_is_known_by_the_name_or_by_the_first_line() -> None:
    assert _format_of("a.jsonl", ["x"]) == "jsonl"
    assert _format_of("a.txt", ["{}"]) == "text"
    assert _format_of("-", ["{}"]) == "jsonl"
    assert _format_of("-", ["hello"]) == "text"


def test_blank_lines_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\r\n\n  \nb \n")
    assert _read(str(tmp_path / "a.txt")) == ["a", "b "]


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        _read(str(tmp_path / "a.txt"))


def test_an_input_that_is_not_there_is_said_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", "--input", "/nowhere/a.txt"]) == 2
    assert "/nowhere/a.txt cannot be read" in capsys.readouterr().err
