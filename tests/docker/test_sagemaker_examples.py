"""The examples that ask a SageMaker endpoint, with a served model where the endpoint would be."""

from __future__ import annotations

import io
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from PIL import Image

from headstock.checkpoint.pull import cached_path, find, is_here
from headstock.server.protocols.openai_bodies import ChatBody
from tests.docker.cloud import Cloud
from tests.e2e.served import SMALL, Served, served

EXAMPLES = Path(__file__).parents[2] / "examples/sagemaker"
pytest.importorskip("boto3", reason="pip install headstock[dev]")


def run(patch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    patch.setattr(sys, "argv", [name, "endpoint", *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


class Stream:
    """What botocore gives of a streamed answer."""

    def __init__(self, content: bytes, size: int) -> None:
        self._parts = [content[i : i + size] for i in range(0, len(content), size)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{"PayloadPart": {"Bytes": part}} for part in self._parts])

    def read(self) -> bytes:
        raise AssertionError("a stream is iterated")


def endpoint(url: str) -> Cloud:
    """An endpoint that asks a server as SageMaker asks its container."""

    def invoke(parameters: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(
            f"{url}/invocations",
            content=parameters["Body"],
            headers={"content-type": parameters["ContentType"]},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        if json.loads(parameters["Body"]).get("stream"):
            return {"Body": Stream(answer.content, 7)}
        return {"Body": io.BytesIO(answer.content)}

    return Cloud({"InvokeEndpoint": invoke, "InvokeEndpointWithResponseStream": invoke})


@pytest.fixture(scope="module")
def server(model: str) -> Iterator[Served]:
    with served(model, *SMALL) as server:
        yield server


@pytest.mark.slow
def test_text_goes_on_from_a_prompt(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = endpoint(server.url)
    cloud.install(monkeypatch)
    run(monkeypatch, "text.py")
    assert "Paris" in capsys.readouterr().out
    assert cloud.asked("InvokeEndpoint")["EndpointName"] == "endpoint"


@pytest.mark.slow
def test_a_chat_streams_whatever_the_parts_are(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint(server.url).install(monkeypatch)
    run(monkeypatch, "chat.py")
    text, usage = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    assert "Paris" in text
    assert "tokens in" in usage


@pytest.mark.slow
def test_texts_are_ordered_by_their_vectors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_here(model := find("all-minilm-l6-v2"), cached_path(model)):
        pytest.skip("all-minilm-l6-v2 was never pulled: `headstock pull all-minilm-l6-v2`")
    with served("all-minilm-l6-v2") as server:
        endpoint(server.url).install(monkeypatch)
        run(monkeypatch, "embeddings.py")
    first, *others = capsys.readouterr().out.splitlines()
    assert "boiling water" in first
    assert len(others) == 2


def test_an_image_is_sent_as_the_chat_route_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No model here reads images of this size: the answer is made up, the body is checked."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    said = {"choices": [{"message": {"content": "A red square."}}]}
    cloud = Cloud({"InvokeEndpoint": {"Body": io.BytesIO(json.dumps(said).encode())}})
    cloud.install(monkeypatch)
    run(monkeypatch, "vision.py", str(tmp_path / "red.png"))
    assert capsys.readouterr().out == "A red square.\n"
    body = msgspec.json.decode(cloud.asked("InvokeEndpoint")["Body"], type=ChatBody)
    picture, _ = msgspec.to_builtins(body.messages)[0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
