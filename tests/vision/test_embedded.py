"""Vectors of images and texts by a decoder that sees (mcdse, DSE), against transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import headstock
from headstock.errors import RequestError
from tests.vision.claims import ONE, SETTINGS, TWO
from tests.vision.conftest import ID_OF, PAD, data_url, picture
from tests.vision.still import StillModel, chat_ids
from tests.vision.still_families import MAKERS

TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string %}{{ message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else %}{{ part.text }}{%- endif %}{%- endfor %}{%- endif %}<|im_end|>\n"
    "{%- endfor %}<|endoftext|>"
)
"""What is embedded is the token that ends the text, as these models were trained."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StillModel:
    path: Path = tmp_path_factory.mktemp("embedded") / "tiny-dse"
    made = MAKERS["qwen2-vl"](path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return made


@pytest.fixture(scope="module")
def engine(model: StillModel) -> Iterator[headstock.Engine]:
    settings: dict[str, Any] = SETTINGS | {
        "chunked_prefill_size": 16,
        "task": "embed",
        "max_images": 4,
    }
    with headstock.Engine(model=str(model.path), **settings) as engine:
        yield engine


def vector(model: StillModel, text: str, images: Sequence[Image.Image]) -> Tensor:
    """Return the oracle's vector of a user's message: of its last token, normalised."""
    parts = [*[{"type": "image"}] * len(images), {"type": "text", "text": text}]
    written = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, chat_template=TEMPLATE
    )
    ids = model.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert ids[-1] == ID_OF["<|endoftext|>"]
    assert ids.count(PAD) == len(images)
    with torch.no_grad():
        given = model.prepare(ids, images)
        hidden = model.oracle.model(**given, use_cache=False).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(hidden, dim=0)


def post(engine: headstock.Engine, **body: Any) -> tuple[int, dict[str, Any]]:
    return asyncio.run(engine.async_request("/v1/embeddings", body))


def vectors(engine: headstock.Engine, **body: Any) -> list[Tensor]:
    status, answer = post(engine, **body)
    assert status == 200, answer
    return [torch.tensor(item["embedding"]) for item in answer["data"]]


def chat(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(image)}} for image in images
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


CASES = {
    "text alone": ("Which page has a table?", []),
    "an image": ("What is shown?", [ONE]),
    "two images": ("And here?", [TWO, ONE]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_vector_of_a_chat_is_that_of_transformers(
    engine: headstock.Engine, model: StillModel, name: str
) -> None:
    text, images = CASES[name]
    (got,) = vectors(engine, messages=chat(text, *images))
    torch.testing.assert_close(got, vector(model, text, images), rtol=1e-4, atol=1e-5)


def test_items_of_input_are_messages_of_their_own(
    engine: headstock.Engine, model: StillModel
) -> None:
    """The shape of SGLang: text, image, or both."""
    bare = data_url(TWO).partition(",")[2]
    items = [{"text": "Hm?"}, {"text": "See.", "image": data_url(ONE)}, {"image": bare}]
    got = vectors(engine, input=items)
    want = [vector(model, "Hm?", []), vector(model, "See.", [ONE]), vector(model, "", [TWO])]
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-4, atol=1e-5)


def test_a_shorter_vector_is_the_first_of_it_normalised(
    engine: headstock.Engine, model: StillModel
) -> None:
    (got,) = vectors(engine, messages=chat("What is shown?", ONE), dimensions=24)
    want = torch.nn.functional.normalize(vector(model, "What is shown?", [ONE])[:24], dim=0)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_repeated_image_is_found_in_the_cache(engine: headstock.Engine) -> None:
    engine.flush_cache()
    again = [post(engine, messages=chat("What is shown?", ONE))[1] for _ in range(2)]
    first, second = (answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in again)
    assert first == 0
    assert second >= 12 + len("<user") + 2
    assert again[0]["data"] == again[1]["data"]
    other = post(engine, messages=chat("What is shown?", picture(24, 32, 9)))[1]
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] < 12
    assert other["data"] != again[0]["data"]


@pytest.mark.parametrize("way", ["ids", "text"])
def test_the_native_route_and_the_engine_take_images(
    engine: headstock.Engine, model: StillModel, way: str
) -> None:
    """A batch of both, and one; prompts have the placeholder where the image stands."""
    cases = [CASES[name] for name in ("text alone", "an image", "two images")]
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    texts = [f"<|im_start|>user{mark * len(i)}{t}<|im_end|><|endoftext|>" for t, i in cases]
    urls = [[data_url(image) for image in images] for _, images in cases]
    given: dict[str, Any] = {"prompt": texts}
    if way == "ids":
        encode = model.tokenizer
        given = {"input_ids": [encode(t, add_special_tokens=False)["input_ids"] for t in texts]}
    want = [vector(model, text, images) for text, images in cases]
    for got, right in zip(engine.embed(**given, image_data=urls), want, strict=True):
        torch.testing.assert_close(torch.tensor(got["embedding"]), right, rtol=1e-4, atol=1e-5)
    body = {"text": texts[1], "image_data": urls[1][0].partition(",")[2]}
    status, answer = asyncio.run(engine.async_request("/encode", body))
    assert status == 200, answer
    torch.testing.assert_close(torch.tensor(answer["embedding"]), want[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(RequestError, match="2 entries for 3 prompts"):
        engine.embed(**given, image_data=urls[:2])
    with pytest.raises(RequestError, match="places for 0 images, and 1 images were sent"):
        engine.embed("no place", image_data=urls[1])


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "neither": ({}, "input", "exactly one of input and messages"),
    "both": ({"input": "a", "messages": chat("b")}, "input", "exactly one"),
    "an empty item": ({"input": [{}]}, "input[0]", "neither text nor image"),
    "a mixture": ({"input": ["a", {"text": "b"}]}, "input", "mixes objects"),
    "a prompt": ({"messages": chat("b"), "prompt_name": "q"}, "prompt_name", "chat template"),
    "no image": ({"input": [{"image": "AAAA"}]}, "input[0].image", "not a PNG"),
    "an address": (
        {"input": [{"image": "https://example.com/a.png"}]},
        "input[0].image",
        "fetches nothing",
    ),
    "too many": (
        {"messages": chat("b", *[picture(8, 8, n) for n in range(20)])},
        "messages[0].content[4].image_url",
        "20 images; 4 are allowed",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_refused_by_its_name(engine: headstock.Engine, name: str) -> None:
    body, field, problem = BAD[name]
    status, answer = post(engine, **body)
    assert status == 400, answer
    assert problem in answer["error"]["message"]
    assert answer["error"]["param"] == field


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["glm4v", "idefics3", "internvl", "kimi-k2.5", "llava", "llava-onevision", "mistral3"],
)
def test_other_families_yield_vectors_too(tmp_path: Path, name: str) -> None:
    made = MAKERS[name](tmp_path / "tiny-seen")
    ids = chat_ids(made, "What is shown?", 1, ("", ""))
    with torch.no_grad():
        given = made.prepare(ids, [ONE])
        hidden = made.oracle.model(**given, use_cache=False).last_hidden_state[0, -1]
    settings: dict[str, Any] = SETTINGS | {"chunked_prefill_size": 16, "task": "embed"}
    parts = [
        {"type": "text", "text": "What is shown?"},
        {"type": "image_url", "image_url": {"url": data_url(ONE)}},
    ]
    messages = [{"role": "user", "content": parts}]
    with headstock.Engine(model=str(made.path), **settings) as engine:
        (got,) = vectors(engine, messages=messages, add_generation_prompt=True)
    want = torch.nn.functional.normalize(hidden, dim=0)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
