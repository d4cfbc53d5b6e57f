"""What is asked of every model that sees images, against transformers on the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

import headstock
from tests.vision.conftest import END, PAD, START, data_url, picture

COUNT = 12
SETTINGS: dict[str, Any] = {
    "backend": "reference",
    "dtype": "float32",
    "max_model_len": 256,
    "cache_tokens": 1024,
    "page_size": 4,
    "max_running_requests": 8,
    "encoder_tokens": 64,
}
ONE, TWO = picture(24, 32, 1), picture(40, 16, 2)
IMAGE = [START, PAD, END]
CASES: dict[str, tuple[list[int], list[Image.Image]]] = {
    "text alone": ([70, 71, 72, 73, 74], []),
    "one image": ([70, 71, *IMAGE, 72, 73, 74], [ONE]),
    "two images": ([*IMAGE, *IMAGE, 72, 73], [ONE, TWO]),
    "an image, text, an image": ([70, *IMAGE, 71, 72, 73, 74, 75, *IMAGE, 76], [TWO, ONE]),
    "an image at the end": ([70, 71, 72, START, PAD], [TWO]),
    "an image at the beginning": ([PAD, END, 70, 71], [TWO]),
    "the same image twice": ([70, *IMAGE, 71, *IMAGE, 72], [ONE, ONE]),
}


def ask(
    engine: headstock.Engine, case: tuple[list[int], list[Image.Image]], **more: Any
) -> dict[str, Any]:
    ids, images = case
    sampling = {"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True}
    urls = [data_url(image) for image in images]
    return engine.generate(input_ids=ids, image_data=urls or None, sampling_params=sampling, **more)


def ask_all(
    engine: headstock.Engine, cases: Sequence[tuple[list[int], list[Image.Image]]]
) -> list[list[int]]:
    sampling = {"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True}
    results = engine.generate(
        input_ids=[ids for ids, _ in cases],
        image_data=[[data_url(image) for image in images] for _, images in cases],
        sampling_params=sampling,
    )
    return [result["output_ids"] for result in results]


class Oracle(Protocol):
    """A small model, saved, and what transformers makes of it."""

    @property
    def path(self) -> Path:
        """Where it is saved."""
        ...

    def generate(self, ids: list[int], images: Sequence[Image.Image], count: int) -> list[int]:
        """Return the ids that are drawn greedily."""
        ...

    def logprobs(self, ids: list[int], images: Sequence[Image.Image]) -> Tensor:
        """Return the log probability of each token of the prompt but the first."""
        ...


def check_logprobs(engine: headstock.Engine, model: Oracle, name: str) -> None:
    """The prompt's log probabilities are those of transformers."""
    engine.flush_cache()
    result = ask(engine, CASES[name], return_logprob=True, logprob_start_len=0)
    got = [entry[0] for entry in result["meta_info"]["input_token_logprobs"][1:]]
    np.testing.assert_allclose(got, model.logprobs(*CASES[name]).numpy(), rtol=1e-4, atol=1e-4)


def check_hit(engine: headstock.Engine, model: Oracle, extra: int, num_tokens: int) -> None:
    """A second request shares more or less of the first, whose image has ``num_tokens``."""
    engine.flush_cache()
    lead = list(range(70, 70 + extra))
    ask(engine, ([*lead, *IMAGE, 80, 81, 82, 83, 84], [ONE]))
    other = ([*lead, *IMAGE, 80, 81, 90, 91], [ONE])
    result = ask(engine, other)
    assert result["meta_info"]["cached_tokens"] >= len(lead) + num_tokens
    assert result["output_ids"] == model.generate(*other, COUNT)
    shorter = ([*lead, START, PAD], [ONE])
    assert ask(engine, shorter)["output_ids"] == model.generate(*shorter, COUNT)


def check_repeat(
    engine: headstock.Engine, model: Oracle, wanted: Mapping[str, list[int]], num_tokens: int
) -> None:
    """An image that comes again is found in the cache, and as many other pixels are not."""
    engine.flush_cache()
    first = ask(engine, CASES["one image"])
    again = ask(engine, CASES["one image"])
    assert again["meta_info"]["cached_tokens"] >= num_tokens
    assert again["output_ids"] == first["output_ids"] == wanted["one image"]
    ids, _ = CASES["one image"]
    other = (ids, [picture(24, 32, 9)])
    result = ask(engine, other)
    assert result["meta_info"]["cached_tokens"] == 0
    assert result["output_ids"] == model.generate(*other, COUNT)


def check_retraction(model: Oracle, wanted: Mapping[str, list[int]], **room: int) -> None:
    """Requests that give way to others, since ``room`` is short, draw the same ids."""
    names = ["one image", "an image at the end"] * 2
    with headstock.Engine(model=str(model.path), **(SETTINGS | room)) as engine:
        results = engine.generate(
            input_ids=[CASES[name][0] for name in names],
            image_data=[[data_url(image) for image in CASES[name][1]] for name in names],
            sampling_params={"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True},
        )
    assert sum(result["meta_info"]["num_retractions"] for result in results) > 0
    assert [result["output_ids"] for result in results] == [wanted[name] for name in names]
