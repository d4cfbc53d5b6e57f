"""No op of a text family's step is left to the reference on a CPU, but for those that are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstock.assemble.check_model import ModelCheck, check_model
from headstock.config import EngineSettings, Loaded
from headstock.config.schema import DeviceSettings, ModelSettings
from headstock.ops.linear import INT8_GROUP
from headstock.testing.oracle.case import ModelCase
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.register import PROVIDER
from tests.models.conftest import Save, save  # noqa: F401 - a fixture
from tests.models.quantized_folders import write_quantized
from tests.models.test_scaled_checkpoints import FORMATS, SIZES
from tests.models.wide import families
from tests.models.wide import save as save_case

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
    "kimik25": IMAGES,
}
"""What the reference computes of a family: docs/xeon.md says why."""


def checked(path: Path) -> ModelCheck:
    """Return what would compute the model in the folder ``path`` on this processor."""
    model = ModelSettings(model=str(path), dtype="float32")
    wanted = EngineSettings(model=model, device=DeviceSettings(backend=PROVIDER))
    return check_model(Loaded(wanted, {}))


@pytest.mark.parametrize("case", families(), ids=lambda case: case.name)
def test_the_reference_computes_what_is_named_and_no_more(
    device: XeonDevice, tmp_path: Path, case: ModelCase
) -> None:
    saved = save_case(case, tmp_path)
    found = checked(saved.folder)
    assert not found.problem
    assert {op.op for op in found.ops if op.provider != PROVIDER} == LEFT.get(case.name, set())


@pytest.mark.parametrize("name", ["compressed int, channels", "compressed int, groups"])
def test_w8a8_checkpoints_are_multiplied_as_integers(
    device: XeonDevice,
    save: Save,  # noqa: F811
    name: str,
) -> None:
    config, quantize, _ = FORMATS[name]
    saved = save("qwen3", **SIZES)
    write_quantized(saved, quantize, config)
    found = checked(saved.path)
    products = [op for op in found.ops if op.op == "linear" and INT8_GROUP in op.spec]
    assert products
    assert {op.provider for op in products} == {PROVIDER}
