"""A rank's process: ``python -m headstock.assemble.rank_process ARGUMENT``; started by rank 0."""

from __future__ import annotations

import sys

from headstock.assemble.memory_hygiene import importing


def main(argv: list[str]) -> int:
    """Import what a rank needs, and run one."""
    (argument,) = argv
    with importing():
        from headstock.assemble.rank_main import run
    return run(argument)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
