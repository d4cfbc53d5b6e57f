"""Where the Triton tests run: on a GPU where there is one, else interpreted on the host."""

from __future__ import annotations

import os
import sys

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

triton = pytest.importorskip("triton")
if not HAS_GPU:
    if not triton.knobs.runtime.interpret:
        pytest.skip("triton was imported before its interpreter could be chosen", True)
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip(f"the interpreter of triton {triton.__version__} is broken", True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16] if HAS_GPU else [torch.float32]
"""The interpreter has no bfloat16."""


class Here:
    """The device under test."""

    torch_device = torch.device("cuda" if HAS_GPU else "cpu")
    capabilities = frozenset[str]()
    num_threads = 1
