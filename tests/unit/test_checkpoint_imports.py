"""Reading model files needs no tensor framework."""

from __future__ import annotations

import subprocess
import sys


def test_the_checkpoint_room_loads_no_torch() -> None:
    code = "import sys, headstock.checkpoint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
