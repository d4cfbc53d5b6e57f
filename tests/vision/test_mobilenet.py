"""The encoder that the tests of Gemma 3n are held to is timm's, where that is installed."""

from __future__ import annotations

import pytest
import torch

from tests.vision.mobilenet import ARGUMENTS, PIXELS, MobileNet


def test_the_encoder_of_the_tests_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm")
    theirs, ours = timm.create_model("mobilenetv5_300m_enc", **ARGUMENTS).eval(), MobileNet().eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.rand(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-4, atol=1e-4)
