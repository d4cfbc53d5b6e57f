"""What a client's script tries, told line by line as JSON. Needs nothing but Python."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable

URL = sys.argv[1] if len(sys.argv) > 1 else ""
MODEL = sys.argv[2] if len(sys.argv) > 2 else ""
TOKENIZER = sys.argv[3] if len(sys.argv) > 3 else ""
"""Folder of the served model's tokenizer."""


def attempt(name: str, function: Callable[[], object]) -> None:
    """Run ``function``, which asserts what must hold, and tell how it went."""
    begun_s = time.monotonic()
    try:
        function()
        problem = ""
    except Exception as error:  # noqa: BLE001 - whatever a client raises is the result
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    taken_s = round(time.monotonic() - begun_s, 2)
    print("STEP " + json.dumps({"tried": name, "problem": problem, "s": taken_s}), flush=True)
