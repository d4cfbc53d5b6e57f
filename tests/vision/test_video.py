"""Videos: sampled, cut and timed as transformers does, and the ids that its model draws of them."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

import headstock
from headstock.errors import RequestError
from headstock.multimodal.families import find_family
from headstock.multimodal.patches import fitting_video_size, sample
from headstock.multimodal.reader import MediaReader, MediaRules
from headstock.multimodal.source import Source
from tests.vision.conftest import END, ID_OF, START, VIDEO, VisionModel, data_url, picture

# By its module's name: the package hides it where torchvision, which resizes, is not installed.
theirs = importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")
COUNT = 10
PAD = ID_OF["<|video_pad|>"]


def film(count: int, *, height: int = 20, width: int = 32) -> list[Image.Image]:
    return [picture(height, width, seed) for seed in range(count)]


def film_url(frames: Sequence[Image.Image], kind: str = "WEBP", duration: int = 250) -> str:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    return data_url(
        frames[0],
        kind,
        save_all=True,
        append_images=list(frames[1:]),
        duration=duration,
        **options,
    )


@pytest.mark.parametrize("total", [2, 4, 5, 9, 24, 100, 1000])
@pytest.mark.parametrize("fps", [1.0, 4.0, 24.0, 29.97])
def test_the_frames_are_those_of_transformers(total: int, fps: float) -> None:
    them = SimpleNamespace(fps=2, min_frames=4, max_frames=12)
    metadata = SimpleNamespace(total_num_frames=total, fps=fps)
    want = theirs.Qwen3VLVideoProcessor.sample_frames(them, metadata).tolist()
    assert sample(total, total / fps, fps=2, least=4, most=12) == want


@pytest.mark.parametrize("size", [(20, 32), (7, 9), (300, 200), (100, 777), (1080, 1920)])
@pytest.mark.parametrize("frames", [2, 5, 12])
def test_sizes_are_those_of_transformers(size: tuple[int, int], frames: int) -> None:
    bounds = {"min_pixels": 256, "max_pixels": 8192}
    want = theirs.smart_resize(frames, *size, temporal_factor=2, factor=8, **bounds)
    assert fitting_video_size(frames, *size, unit=8, **bounds) == want


def prepared(
    frames: Sequence[Image.Image], seconds: float, num_frames: int | None = None
) -> tuple[np.ndarray, list[int]]:
    """Return the patches and the grid as transformers makes them, resized by PIL."""
    chosen = sample(len(frames), seconds, fps=2, least=4, most=12)
    if num_frames is not None:
        them = SimpleNamespace(fps=None, min_frames=4, max_frames=12)
        metadata = SimpleNamespace(total_num_frames=len(frames), fps=len(frames) / seconds)
        chosen = theirs.Qwen3VLVideoProcessor.sample_frames(
            them, metadata, num_frames=num_frames
        ).tolist()
    height, width = theirs.smart_resize(
        len(chosen),
        frames[0].height,
        frames[0].width,
        temporal_factor=2,
        factor=8,
        min_pixels=256,
        max_pixels=8192,
    )
    resized = [frames[i].resize((width, height), Image.Resampling.BICUBIC) for i in chosen]
    video = torch.from_numpy(np.stack([np.asarray(f).transpose(2, 0, 1) for f in resized]))
    patches, *_, grid_h, grid_w = theirs.Qwen3VLVideoProcessor.patchify(
        None, video[None].float(), patch_size=4, merge_size=2, temporal_patch_size=2
    )
    return patches[0].numpy(), [-(-len(chosen) // 2), grid_h, grid_w]


def reader(vl: VisionModel, max_frames: int = 64) -> MediaReader:
    config = json.loads((vl.path / "config.json").read_text())
    family = find_family(config, vl.path)
    assert family is not None
    rules = MediaRules(
        max_items=4,
        max_bytes=1 << 24,
        max_pixels=1 << 20,
        max_tokens=512,
        max_frames=max_frames,
        allows_urls=False,
        fetch_timeout_s=1,
    )
    return MediaReader(family, rules)


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
@pytest.mark.parametrize("count", [4, 5, 9, 30])
def test_patches_are_those_of_transformers(vl: VisionModel, kind: str, count: int) -> None:
    frames = film(count)
    ours = reader(vl)
    (found,) = ours.read([Source("v", film_url(frames, kind), kind="video")])
    ours.close()
    patches, grid = prepared(frames, count / 4)
    assert [len(found.pieces), *found.pieces[0].grid[1:]] == grid
    np.testing.assert_array_equal(
        np.frombuffer(b"".join(piece.pixels for piece in found.pieces), np.uint8).reshape(
            patches.shape
        ),
        patches,
    )


@pytest.mark.parametrize("num_frames", [2, 5, 6, 20])
def test_as_many_frames_are_looked_at_as_are_wished(vl: VisionModel, num_frames: int) -> None:
    frames = film(30)
    ours = reader(vl)
    (found,) = ours.read([Source("v", film_url(frames), kind="video", num_frames=num_frames)])
    ours.close()
    patches, grid = prepared(frames, 7.5, num_frames)
    assert [len(found.pieces), *found.pieces[0].grid[1:]] == grid
    pixels = b"".join(piece.pixels for piece in found.pieces)
    np.testing.assert_array_equal(np.frombuffer(pixels, np.uint8).reshape(patches.shape), patches)


def test_more_frames_than_are_allowed_are_refused(vl: VisionModel) -> None:
    ours = reader(vl, max_frames=8)
    with pytest.raises(RequestError, match="9 frames to look at; 8 are allowed"):
        ours.read([Source("v", film_url(film(30)), kind="video", num_frames=9)])
    ours.close()


def oracle(vl: VisionModel, frames: Sequence[Image.Image], lead: list[int], tail: list[int]) -> Any:
    """Return what the oracle is given: lead, the video as its processor writes it, tail."""
    seconds = len(frames) / 4
    patches, grid = prepared(frames, seconds)
    chosen = sample(len(frames), seconds, fps=2, least=4, most=12)
    processor = theirs_processor()
    times = processor._calculate_timestamps(list(chosen), 4.0, 2)
    words = Tokenizer.from_file(str(vl.path / "tokenizer.json"))
    ids = [*lead, START]
    for time in times:
        text = words.encode(f"<{time:.1f} seconds>", add_special_tokens=False).ids
        ids += [*text, START, *[PAD] * (grid[1] * grid[2] // 4), END]
    ids += [END, *tail]
    return {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([[2 * int(token == PAD) for token in ids]]),
        "pixel_values_videos": (torch.from_numpy(patches) / 255 - 0.5) / 0.5,
        "video_grid_thw": torch.tensor([grid]),
    }


def theirs_processor() -> Any:
    from transformers import Qwen3VLProcessor

    return Qwen3VLProcessor.__new__(Qwen3VLProcessor)


@pytest.fixture(scope="module")
def engine(vl: VisionModel) -> Iterator[headstock.Engine]:
    settings = {"backend": "reference", "dtype": "float32", "max_model_len": 512}
    settings |= {"cache_tokens": 2048, "page_size": 4, "chunked_prefill_size": 40}
    with headstock.Engine(model=str(vl.path), **settings) as engine:
        yield engine


@pytest.mark.parametrize("count", [4, 7, 30])
def test_a_chat_with_a_video_draws_the_ids_of_transformers(
    engine: headstock.Engine, vl: VisionModel, count: int
) -> None:
    frames = film(count)
    parts = [{"type": "video_url", "video_url": {"url": film_url(frames)}}]
    body = {
        "model": "tiny-vl",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hm?"}, *parts]}],
        "max_tokens": COUNT,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": True,
    }
    status, answer = asyncio.run(engine.async_request("/v1/chat/completions", body))
    assert status == 200, answer
    words = Tokenizer.from_file(str(vl.path / "tokenizer.json"))
    lead = words.encode("<|im_start|>userHm?", add_special_tokens=False).ids
    tail = words.encode("<|im_end|><|im_start|>assistant", add_special_tokens=False).ids
    given = oracle(vl, frames, lead, tail)
    with torch.no_grad():
        made = vl.oracle.generate(
            **given, max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    drawn = made[0, given["input_ids"].shape[1] :].tolist()
    assert answer["usage"]["prompt_tokens"] == given["input_ids"].shape[1]
    content = answer["choices"][0]["message"]["content"]
    assert content == words.decode(drawn, skip_special_tokens=True)


BAD = {
    "one frame": (data_url(picture(20, 20)), "one frame"),
    "text": ("data:video/mp4;base64,AAAAIGZ0eXBpc29t", "not a PNG"),
    "too many frames": (film_url(film(40), duration=1000), "frames to look at; 6 are allowed"),
    "too many pixels": (
        film_url([Image.new("RGB", (900, 900), (i, 0, 0)) for i in range(16)]),
        "frames to look at",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_video_is_refused_by_its_name(vl: VisionModel, name: str) -> None:
    url, problem = BAD[name]
    ours = reader(vl, max_frames=6)
    with pytest.raises(RequestError, match=problem) as caught:
        ours.read([Source("messages[0].content[1].video_url", url, kind="video")])
    ours.close()
    assert caught.value.field == "messages[0].content[1].video_url"


def test_a_truncated_video_is_damaged(vl: VisionModel) -> None:
    stream = io.BytesIO()
    frames = film(6)
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    import base64

    url = f"data:;base64,{base64.b64encode(stream.getvalue()[:-3000]).decode()}"
    ours = reader(vl)
    with pytest.raises(RequestError, match="damaged"):
        ours.read([Source("v", url, kind="video")])
    ours.close()


def test_a_model_without_a_video_processor_takes_images_only(
    vl: VisionModel, tmp_path: Path
) -> None:
    config = json.loads((vl.path / "config.json").read_text())
    name = "preprocessor_config.json"
    (tmp_path / name).write_text((vl.path / name).read_text())
    family = find_family(config, tmp_path)
    assert family is not None
    assert family.video is None
    assert VIDEO["fps"] == 2


def test_images_and_videos_stand_where_the_prompt_has_them(engine: headstock.Engine) -> None:
    """``/generate`` gives them apart; each kind keeps its own order."""
    still, moving = picture(24, 32, 3), film(4)
    image = ID_OF["<|image_pad|>"]
    mixed = {"image_data": data_url(still), "video_data": [film_url(moving)]}
    sampling = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    sizes = [
        engine.generate(input_ids=ids, sampling_params=sampling, **mixed)["meta_info"]
        for ids in ([70, PAD, 71, image, 72], [70, image, 71, PAD, 72])
    ]
    assert sizes[0]["prompt_tokens"] == sizes[1]["prompt_tokens"] > 30
    with pytest.raises(RequestError, match="places for 1 images, and 1 images and 1 videos"):
        engine.generate(input_ids=[70, image, 72], sampling_params=sampling, **mixed)
