"""``python -m headstock.cli``."""

from __future__ import annotations

import sys

from headstock.cli import main

sys.exit(main())
