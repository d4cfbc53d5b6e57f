"""No op of a text family's step is left to the reference on a CPU, but for those that are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headstock.assemble.check_model import check_model
from headstock.config import EngineSettings, Loaded
from headstock.config.schema import DeviceSettings, ModelSettings
from headstock.testing.oracle.case import ModelCase
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.register import PROVIDER
from tests.models.wide import families, save

SPARSE = {"index_tokens", "latent_attention", "rotate_and_write_latent"}
"""The indexer of sparse attention, and attention to what it chose in the layout that it reads."""
BLOCKS = {"index_blocks", "attention", "rotate_and_write"}
STREAMS = {
    "add_to_others",
    "correct_streams",
    "keep_above",
    "known_ids",
    "match_magnitudes",
    "mean_of_streams",
    "predict_streams",
    "sum_moments",
}
IMAGES = {
    "add_resampled",
    "axis_angles",
    "encoder_attention",
    "mix_patches",
    "pixel_values",
    "place_features",
}
"""Of steps with images only."""
LEFT = {
    "deepseekv32": SPARSE,
    "glmmoedsa": SPARSE,
    "gemma3n": STREAMS,
    "gemma3n-hub": STREAMS,
    "kimik25": IMAGES,
    "longcatflash": {"add_identities", "drop_identities"},
    "minimaxm3": BLOCKS,
    "minimaxm3-images": BLOCKS,
}
"""What the reference computes of a family: docs/xeon.md says why."""


@pytest.mark.parametrize("case", families(), ids=lambda case: case.name)
def test_the_reference_computes_what_is_named_and_no_more(
    device: XeonDevice, tmp_path: Path, case: ModelCase
) -> None:
    saved = save(case, tmp_path)
    settings: dict[str, Any] = {"model": str(saved.folder), "dtype": "float32"}
    wanted = EngineSettings(
        model=ModelSettings(**settings), device=DeviceSettings(backend=PROVIDER)
    )
    found = check_model(Loaded(wanted, {}))
    assert not found.problem
    assert {op.op for op in found.ops if op.provider != PROVIDER} == LEFT.get(case.name, set())
