"""The trials of reliability.py and soak.py; they serve as the tests do (``tests.e2e.served``)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # where tests/ is
