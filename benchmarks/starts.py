"""Starts of two clones in pairs: from the command to the first 200 of `/ready`.

    python benchmarks/starts.py --base CLONE                    15 pairs; 2 minutes
    python benchmarks/starts.py --base CLONE --rounds 30 --output-file FILE

Each clone has its own `.venv`. Both start the default model one after the other, in an order that
changes from round to round; the first round fills the system's caches and does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent.parent
LIMIT_S = 60.0
LOOK_EVERY_S = 0.005


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_ready(port: int) -> bool:
    """Whether the server on ``port`` takes requests."""
    address = f"http://127.0.0.1:{port}/ready"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
        return answer.status == 200
    return False


def start(clone: Path, model: str) -> float:
    """Start a server of ``clone``, stop it, and return how long it took to be ready. Seconds."""
    port = free_port()
    command = [clone / ".venv/bin/python", "-m", "headstock.cli", "serve", model]
    begin = time.perf_counter()
    server = subprocess.Popen(
        [*map(str, command), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        while not is_ready(port):
            if server.poll() is not None or time.perf_counter() - begin > LIMIT_S:
                raise SystemExit(f"{clone} was not ready: {server.poll()}")
            time.sleep(LOOK_EVERY_S)
        return time.perf_counter() - begin
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description="Starts of two clones in pairs.")
    parser.add_argument("--base", type=Path, required=True, help="the clone to compare with")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output-file", type=Path)
    options = parser.parse_args()
    pairs: list[tuple[float, float]] = []
    for number in range(options.rounds + 1):
        order = (HERE, options.base) if number % 2 else (options.base, HERE)
        took = {clone: start(clone.resolve(), options.model) for clone in order}
        if number:
            pairs.append((took[HERE], took[options.base]))
            print(f"{took[HERE]:.3f} s, base {took[options.base]:.3f} s", file=sys.stderr)
    low, middle, high = statistics.quantiles([mine / its for mine, its in pairs], n=4)
    found = {
        "command": " ".join(["python", "benchmarks/starts.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": os.getloadavg()[0],
        "this_s": statistics.median(mine for mine, _ in pairs),
        "base_s": statistics.median(its for _, its in pairs),
        "ratio": middle,
        "quartiles": [low, high],
        "fastest_s": [min(mine for mine, _ in pairs), min(its for _, its in pairs)],
        "pairs_s": pairs,
    }
    print(json.dumps({name: value for name, value in found.items() if name != "pairs_s"}, indent=1))
    if options.output_file:
        options.output_file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
