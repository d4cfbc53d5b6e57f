"""Chooses Triton's interpreter where no GPU is, before torch imports Triton by itself."""

import os
from pathlib import Path

if not any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")
