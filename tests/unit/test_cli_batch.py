"""`headstock batch`: rows, and going on where a run stopped."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headstock.cli import batch, main
from headstock.cli.batch_rows import CHAT, COMPLETION, Asked, Output, read_rows
from headstock.errors import ConfigError


def rows_of(folder: Path, *lines: Any) -> list[Asked]:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_rows(str(path))


def test_rows_of_openai_and_plain_ones(tmp_path: Path) -> None:
    body = {"model": "m", "messages": []}
    url = "/v1/programs"
    found = rows_of(
        tmp_path,
        {"custom_id": "a", "method": "POST", "url": url, "body": {"steps": []}},
        {"custom_id": "b", "body": body},
        {"id": 3, "prompt": "x", "sampling_params": {"max_tokens": 2}},
        {"messages": [{"role": "user", "content": "hi"}]},
    )
    assert found == [
        Asked("a", url, {"steps": []}),
        Asked("b", CHAT, body),
        Asked("3", COMPLETION, {"prompt": "x", "max_tokens": 2}),
        Asked("row-4", CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
    ]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no rows"),
        ([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}], "line 2.*'a' was used"),
        ([{"id": "a"}], "line 1 has not exactly one"),
        ([[1]], "line 1 is not a row"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rows_of(tmp_path, *lines)


class Server:
    """Answers rows, and fails those whose prompt is a status."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.most = self.live = 0

    async def __call__(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append(body["prompt"])
        self.live += 1
        self.most = max(self.most, self.live)
        await asyncio.sleep(0)
        self.live -= 1
        if body["prompt"].isdigit():
            return int(body["prompt"]), {"error": {}}
        return 200, {"text": body["prompt"].upper()}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "WAIT_S", 0.0)


def answer(server: Server, rows: list[Asked], path: Path, concurrency: int = 2) -> int:
    output = Output(str(path), rows)
    left = [row for row in rows if row.custom_id not in output.done]
    try:
        return asyncio.run(batch.answer_all(server, left, output, lambda _: None, concurrency))
    finally:
        output.close()


def answers(path: Path) -> dict[str, int]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["custom_id"]: line["response"]["status_code"] for line in lines}


def test_every_row_is_answered_so_many_at_once(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, *[{"id": f"r{i}", "prompt": f"p{i}"} for i in range(9)])
    server = Server()
    assert answer(server, rows, tmp_path / "out.jsonl", 3) == 0
    assert server.most == 3
    assert answers(tmp_path / "out.jsonl") == {f"r{i}": 200 for i in range(9)}


def test_a_second_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    texts = {"good": "x", "refused": "400", "busy": "503"}
    rows = rows_of(tmp_path, *[{"id": name, "prompt": text} for name, text in texts.items()])
    path = tmp_path / "out.jsonl"
    first = Server()
    assert answer(first, rows, path) == 2
    assert first.asked.count("503") == batch.TRIES
    assert answers(path) == {"good": 200, "refused": 400, "busy": 503}
    second = Server()
    answer(second, rows, path)
    assert set(second.asked) == {"503"}
    assert answers(path) == {"good": 200, "refused": 400, "busy": 503}


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"})
    path = tmp_path / "out.jsonl"
    answer(Server(), rows, path)
    path.write_bytes(path.read_bytes()[:-20])
    again = Server()
    answer(again, rows, path)
    assert len(again.asked) == 1
    assert answers(path) == {"a": 200, "b": 200}


def test_an_output_of_other_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    answer(Server(), rows_of(tmp_path, {"id": "a", "prompt": "x"}), path)
    before = path.read_text()
    with pytest.raises(ConfigError, match="answer to 'a'"):
        Output(str(path), rows_of(tmp_path, {"id": "b", "prompt": "x"}))
    assert path.read_text() == before


def test_a_stream_is_refused(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": "a", "body": {"prompt": "x", "stream": True}})
    assert answer(Server(), rows, tmp_path / "out.jsonl") == 1
    assert answers(tmp_path / "out.jsonl") == {"a": 400}


def test_a_server_and_an_engine_at_once_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_of(tmp_path, {"id": "a", "prompt": "x"})
    words = ["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "m"]
    assert main([*words, "--url", "http://127.0.0.1:9"]) == 2
    assert "--url names a server" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
