"""What a newcomer pastes from the README, the quickstart and the API reference works."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstock.checkpoint.pull import cached_path, find, is_here
from tests.e2e.served import SMALL, Served, served

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "http-api.md"]
CURL = re.compile(r"curl http://127\.0\.0\.1:30000(/\S+)(?:[^'\n]|'[^']*')*?\\\n\s+-d '([^']*)'")
EMBEDS = ("/v1/embeddings", "/v1/rerank")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def snippets(word: str) -> list[str]:
    texts = (page.read_text(encoding="utf-8") for page in PAGES)
    return [code for text in texts for code in PYTHON.findall(text) if word in code]


def output_of(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    return printed.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    if not cached_path(find("smollm2")).is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    with served("smollm2", *SMALL) as server:
        yield server


def test_every_curl_is_answered(server: Served) -> None:
    calls = [call for page in PAGES for call in CURL.findall(page.read_text(encoding="utf-8"))]
    calls = [(path, json.loads(body)) for path, body in calls if path not in EMBEDS]
    assert len(calls) == 4
    for path, body in calls:
        answer = server.post(path, **body)
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.text or answer.json()["object"] == "scoring"


def test_every_curl_of_an_embedding_model_is_answered() -> None:
    if not is_here(model := find("all-minilm-l6-v2"), cached_path(model)):
        pytest.skip("all-minilm-l6-v2 was never pulled: `headstock pull all-minilm-l6-v2`")
    calls = [call for page in PAGES for call in CURL.findall(page.read_text(encoding="utf-8"))]
    calls = [(path, json.loads(body)) for path, body in calls if path in EMBEDS]
    assert len(calls) == 2
    with served("all-minilm-l6-v2") as server:
        for path, body in calls:
            answer = server.post(path, **body)
            assert answer.status_code == 200, answer.text
            assert len(answer.json().get("data") or answer.json()["results"]) in (1, 2)


def test_the_openai_snippet_streams_an_answer(server: Served) -> None:
    (code,) = snippets("OpenAI(")
    assert "Paris" in output_of(code.replace("http://127.0.0.1:30000", server.url))


@pytest.mark.parametrize("code", snippets("headstock.Engine("), ids=["readme", "quickstart"])
def test_snippets_of_the_offline_engine_run(server: Served, code: str) -> None:
    sized = code.replace('"smollm2"', '"smollm2", cache_tokens=8192, max_model_len=2048')
    assert "Paris" in output_of(sized)
