"""Whether a captured step can hold what Triton leaves to the reference, of each text family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from triton_here import Here

from headstock.checkpoint.folder import open_folder
from headstock.graph.build import build_model
from headstock.ops import load_all_ops
from headstock.ops.base import REFERENCE, OpRegistry, Resolver
from headstock.testing.oracle.case import ModelCase
from headstock.testing.oracle.sequences import context
from headstock_triton.register import register_ops
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
CALLS = {"as_float32", "join_features"}
"""One call of PyTorch each, a kernel of its own."""
LEFT = {"kimik25": IMAGES}
"""What the reference computes of a family: docs/cuda.md says why."""


class Hopper(Here):
    """As much of a card as choosing looks at."""

    torch_device = torch.device("cpu")
    capabilities = frozenset({"sm_90"})


@pytest.mark.parametrize("case", families(), ids=lambda case: case.name)
def test_a_card_can_capture_what_the_reference_computes(tmp_path: Path, case: ModelCase) -> None:
    saved = save_case(case, tmp_path)
    registry, device = OpRegistry(), Hopper()
    register_ops(registry, device)
    ctx = context(
        ops=Resolver(registry, device),
        dtype=torch.bfloat16,
        page_size=64,
        max_length=case.max_length,
    )
    files = open_folder(saved.folder)
    with torch.no_grad():
        build_model(case.model, ctx, files.config)
    found = {used.op for used in ctx.ops.resolutions if used.provider == REFERENCE}
    ops = load_all_ops()
    assert not {name for name in found if ops[name].reads_host}
    assert found - CALLS == LEFT.get(case.name, set())
