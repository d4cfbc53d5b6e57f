"""Running a tool's command as a step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def run(name: str, *args: str, cwd: str | None = None, timeout_s: float = 420.0) -> str:
    """Run a command of this environment and return what it said; it must succeed."""
    done = subprocess.run(
        [str(BIN / name), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
        check=False,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, f"{name} ended with {done.returncode}"
    return done.stdout
