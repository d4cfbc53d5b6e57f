"""Images over HTTP, as clients send them, and what hostile ones do: nothing to anyone else."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import transformers
from PIL import Image

from tests.e2e.served import Served, served
from tests.vision.conftest import VisionModel, data_url, picture

FLAGS = ["--backend", "reference", "--dtype", "float32", "--cache-tokens", "2048"]
FLAGS += ["--max-model-len", "384", "--max-images", "3", "--encoder-tokens", "512"]
WHERE = "messages[0].content[1].image_url"


@pytest.fixture(scope="module")
def server(vl: VisionModel) -> Iterator[Served]:
    with served(str(vl.path), *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(*urls: str, text: str = "What is this?") -> list[Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]


def words(client: openai.OpenAI, messages: list[Any], **more: Any) -> Any:
    return client.chat.completions.create(
        model="tiny-vl", messages=messages, temperature=0, max_tokens=8, **more
    )


def encoded(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A file of some bytes that says it is of that size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_chat_with_images_answers_as_transformers(client: openai.OpenAI, vl: VisionModel) -> None:
    images = [picture(24, 32, 3), picture(16, 40, 4)]
    messages = chat(*(data_url(image) for image in images))
    tokenizer = transformers.AutoTokenizer.from_pretrained(vl.path)
    shown = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]
    shown[0]["content"] += [{"type": "image"}] * 2
    text = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    drawn = vl.generate(ids, images, 8)
    answer = words(client, messages, extra_body={"ignore_eos": True})
    assert answer.choices[0].message.content == tokenizer.decode(drawn, skip_special_tokens=True)
    assert answer.usage.prompt_tokens == vl.inputs(ids, images)["input_ids"].shape[1]


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    messages = chat(data_url(picture(24, 32, 3)))
    whole = words(client, messages).choices[0].message.content
    stream = words(client, messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_the_model_is_told_to_take_images(server: Served) -> None:
    assert server.get("/model_info").json()["has_image_understanding"] is True


def test_other_protocols_take_the_same_image(client: openai.OpenAI, server: Served) -> None:
    url = data_url(picture(24, 32, 3))
    want = words(client, chat(url)).choices[0].message.content
    content = [{"type": "input_text", "text": "What is this?"}]
    content.append({"type": "input_image", "image_url": url})
    answer = client.responses.create(
        model="tiny-vl",
        input=[{"role": "user", "content": content}],
        temperature=0,
        max_output_tokens=16,
    )
    assert answer.output_text.startswith(want)
    raw = url.partition(",")[2]
    block = {"type": "image", "source": {"type": "base64", "media_type": "x", "data": raw}}
    body = {
        "model": "tiny-vl",
        "max_tokens": 8,
        "temperature": 0,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, block]}
        ],
    }
    assert server.post("/v1/messages", **body).json()["content"][0]["text"] == want
    media = {"type": "media", "url": url, "role": "user"}
    gen = {"type": "gen", "name": "x", "role": "assistant"}
    gen["sampling_params"] = {"temperature": 0, "max_new_tokens": 8}
    first = {"type": "text", "text": "What is this?", "role": "user"}
    program = server.post("/v1/programs", steps=[first, media, gen], model="tiny-vl").json()
    assert program["variables"]["x"] == want
    turn = {"role": "user", "content": "What is this?", "images": [raw]}
    options = {"temperature": 0, "num_predict": 8}
    told = server.post(
        "/api/chat", model="tiny-vl", messages=[turn], stream=False, options=options
    ).json()
    assert told["message"]["content"]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    body = {
        "text": f"<|im_start|>userWhat is this?{image}<|im_end|><|im_start|>assistant",
        "image_data": url.partition(",")[2],
        "sampling_params": {"temperature": 0, "max_new_tokens": 8},
    }
    assert server.post("/generate", **body).json()["text"] == want


def test_a_program_says_how_many_frames_of_a_video_are_looked_at(server: Served) -> None:
    frames = [picture(24, 32, seed) for seed in range(12)]
    url = data_url(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    def prompt_tokens(num_frames: int) -> int:
        media = {"type": "media", "kind": "video", "url": url, "num_frames": num_frames}
        gen = {"type": "gen", "name": "x", "role": "assistant"}
        gen["sampling_params"] = {"temperature": 0, "max_new_tokens": 2}
        steps = [{**media, "role": "user"}, gen]
        program = server.post("/v1/programs", steps=steps, model="tiny-vl").json()
        return program["usage"]["prompt_tokens"]

    two, four, six = map(prompt_tokens, (2, 4, 6))
    assert two < four < six


GOOD = picture(24, 32, 5)
MOVING = file_of(GOOD, "GIF", save_all=True, append_images=[picture(24, 32, 6)])
HOSTILE = {
    "huge": (encoded(png_of_size(60000, 60000)), "60000 x 60000 pixels"),
    "long": (encoded(png_of_size(20000, 2)), "one side may be 200 times"),
    "truncated": (encoded(file_of(GOOD, "PNG")[:300]), "damaged"),
    "truncated photograph": (encoded(file_of(GOOD, "JPEG")[:400]), "damaged"),
    "no pixels": (encoded(png_of_size(1000, 1000)), "damaged"),
    "moving": (encoded(MOVING), "2 frames"),
    "text": (encoded(b"no image at all"), "not a PNG"),
    "another format": (encoded(file_of(GOOD, "TIFF")), "not a PNG"),
    "no base64": ("data:image/png;base64,@@@@", "not base64"),
    "no bytes": ("data:image/png;base64,", "no bytes"),
    "a file": ("file:///etc/passwd", "of 'file'"),
    "an address": ("https://127.0.0.1/x.png", "fetches nothing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_image_is_refused_by_its_name_and_the_server_goes_on(
    client: openai.OpenAI, name: str
) -> None:
    url, problem = HOSTILE[name]
    with pytest.raises(openai.BadRequestError) as caught:
        words(client, chat(url))
    assert caught.value.param == WHERE
    assert caught.value.message.count(WHERE) == 1
    assert problem in caught.value.message
    assert words(client, chat(data_url(GOOD))).choices[0].message.content is not None


PHOTO = file_of(GOOD.resize((64, 40)), "JPEG")
TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    ("image", "same"),
    [
        (file_of(GOOD.convert("RGBA"), "PNG"), GOOD),
        (file_of(GOOD.convert("L"), "PNG"), GOOD.convert("L").convert("RGB")),
        (
            file_of(Image.fromarray(np.asarray(GOOD.convert("L")).astype(np.uint16) * 257), "PNG"),
            GOOD.convert("L").convert("RGB"),
        ),
        (
            file_of(Image.open(io.BytesIO(PHOTO)), "PNG"),
            Image.open(io.BytesIO(PHOTO)),
        ),
        (file_of(GOOD.rotate(90, expand=True), "PNG", exif=TURNED), GOOD),
    ],
    ids=["alpha", "grey", "16 bits", "photograph", "turned"],
)
def test_kinds_of_files_that_show_the_same_are_the_same(
    client: openai.OpenAI, image: bytes, same: Image.Image
) -> None:
    """Told by the cache: equal pixels are a hit from the first token to the last page."""
    words(client, chat(data_url(same)))
    answer = words(client, chat(encoded(image)))
    assert answer.usage.prompt_tokens_details.cached_tokens > 20


def test_a_cmyk_photograph_is_taken(client: openai.OpenAI) -> None:
    image = encoded(file_of(GOOD.convert("CMYK"), "JPEG"))
    assert words(client, chat(image)).choices[0].message.content is not None


def test_too_many_images_are_refused_by_the_name_of_the_first_that_is_too_many(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError, match="has 4 images; 3 are allowed") as caught:
        words(client, chat(*[data_url(GOOD)] * 4))
    assert caught.value.param == "messages[0].content[4].image_url"


def test_a_placeholder_in_the_text_is_no_place_for_an_image(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="places for 2 images, and 1 images"):
        words(client, chat(data_url(GOOD), text="<|image_pad|>"))


def test_a_detail_that_would_change_the_image_is_refused(client: openai.OpenAI) -> None:
    messages = chat(data_url(GOOD))
    messages[0]["content"][1]["image_url"]["detail"] = "low"
    with pytest.raises(openai.BadRequestError, match="detail is 'low'"):
        words(client, messages)


def test_the_process_that_decodes_may_die(server: Served, client: openai.OpenAI) -> None:
    import psutil

    words(client, chat(data_url(GOOD)))
    family = psutil.Process(server.process.pid).children(recursive=True)
    decoders = [c for c in family if "headstock.multimodal.process" in c.cmdline()]
    assert decoders
    for process in decoders:
        process.kill()
    assert words(client, chat(data_url(GOOD))).choices[0].message.content is not None


def test_a_killed_engine_goes_on_with_the_image(server: Served, client: openai.OpenAI) -> None:
    import psutil

    messages = chat(data_url(picture(24, 32, 7)))
    want = words(client, messages, extra_body={"ignore_eos": True, "max_tokens": 200})
    stream = words(
        client, messages, stream=True, extra_body={"ignore_eos": True, "max_tokens": 200}
    )
    parts = [next(stream).choices[0].delta.content or "" for _ in range(3)]
    psutil.Process(server.engine_pid).kill()
    parts += [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == want.choices[0].message.content


def test_the_log_has_nothing_of_an_image(server: Served) -> None:
    assert "base64" not in server.log
    assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
