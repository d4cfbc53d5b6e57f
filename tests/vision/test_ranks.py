"""Images where two ranks share the decoder: each has the whole encoder and the same features."""

from __future__ import annotations

import pytest

import headstock
from tests.vision.claims import CASES, COUNT, SETTINGS, ask_all
from tests.vision.conftest import VisionModel

pytestmark = pytest.mark.slow


def test_two_ranks_draw_the_ids_of_transformers(vl: VisionModel) -> None:
    names = ["text alone", "one image", "an image, text, an image"]
    settings = SETTINGS | {"tp_size": 2, "chunked_prefill_size": 16}
    with headstock.Engine(model=str(vl.path), **settings) as engine:
        got = ask_all(engine, [CASES[name] for name in names])
    assert got == [vl.generate(*CASES[name], COUNT) for name in names]
