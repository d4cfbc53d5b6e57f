"""The API process does without a tensor library: it starts at once and takes little memory."""

from __future__ import annotations

import subprocess
import sys


def test_the_api_process_loads_no_torch() -> None:
    code = (
        "import sys, headstock.cli.serve, headstock.assemble.serve\n"
        "import headstock.assemble.api_process\n"
        "sys.exit(repr(sorted({'torch', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.strip() == "[]"
