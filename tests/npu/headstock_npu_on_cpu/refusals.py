"""How the made-up kernels say no."""

from __future__ import annotations

import torch

FLOATS = {torch.float16, torch.bfloat16, torch.float32}
NARROW = {torch.float16, torch.bfloat16}


def need(is_so: bool, what: str) -> None:
    """Refuse as the kernel would."""
    if not is_so:
        raise RuntimeError(f"an NPU refuses this call: {what}")
