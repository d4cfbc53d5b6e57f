"""The engine process: ``python -m headstock.assemble.engine_process ADDRESS PARENT SETTINGS``."""

from __future__ import annotations

import sys

from headstock.assemble.memory_hygiene import importing


def main(argv: list[str]) -> int:
    """Import what an engine needs, and run one."""
    address, parent, text = argv
    with importing():
        from headstock.assemble.engine_main import run
    run(address, int(parent), text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
