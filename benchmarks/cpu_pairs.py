"""Two clones of ours on the CPU, both up and asked in turn: the ratio of every pair of answers.

    python benchmarks/cpu_pairs.py FOLDER --base CLONE                  4 and 8 bits; 8 minutes
    python benchmarks/cpu_pairs.py FOLDER --base CLONE --precisions int4 --rounds 10

cpu_peers.py has one server up at a time, and a shared machine is faster one minute than the next:
its figures of one version differ by a tenth from start to start. Here each workload is asked of one
server and then of the other, in an order that changes from round to round, so that what else the
machine does meets both; the figure is the median of the rounds' ratios. FOLDER and the workloads
are those of cpu_peers.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import peer_load
from peer_engines import servers
from peer_load import Running, Sizes

from headstock.cli.table import format_table

SIZES = Sizes(singles=2)
WORKLOADS: tuple[Callable[[Running, Sizes, int], dict[str, float]], ...] = (
    peer_load.one_stream,
    peer_load.many_streams,
    peer_load.shared_prefix,
)
Pairs = dict[str, list[tuple[float, float]]]
"""By figure; of each round, this clone's value and the base's."""


def measure(this: Running, base: Running, rounds: int) -> Pairs:
    """Ask both in turn, round by round."""
    pairs: Pairs = defaultdict(list)
    for running in (this, base):
        peer_load.warm_up(running, SIZES)
    for number in range(rounds):
        for workload in WORKLOADS:
            order = (this, base) if number % 2 else (base, this)
            found = {id(running): workload(running, SIZES, number) for running in order}
            for figure, value in found[id(this)].items():
                pairs[figure].append((value, found[id(base)][figure]))
    return pairs


def summary(pairs: Pairs) -> dict[str, dict[str, float]]:
    """Return, of each figure, both medians, and quartiles of the ratio to the base."""
    found: dict[str, dict[str, float]] = {}
    for figure, values in pairs.items():
        low, middle, high = statistics.quantiles([mine / its for mine, its in values], n=4)
        found[figure] = {
            "this": statistics.median(mine for mine, _ in values),
            "base": statistics.median(its for _, its in values),
            "ratio": middle,
            "lower_quartile": low,
            "upper_quartile": high,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="another clone, with its .venv")
    parser.add_argument("--precisions", default="int4,int8")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output-file", type=Path)
    options = parser.parse_args()
    known = servers(options.folder, options.threads, options.base)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for precision in options.precisions.split(","):
        mine, its = known[f"headstock-{precision}"], known[f"base-{precision}"]
        with peer_load.started(mine) as this, peer_load.started(its) as base:
            results[precision] = summary(measure(this, base, options.rounds))
        header = [precision, "this", "base", "ratio", "quartiles"]
        rows = [
            [
                figure,
                f"{values['this']:.1f}",
                f"{values['base']:.1f}",
                f"{values['ratio']:.3f}",
                f"{values['lower_quartile']:.3f} to {values['upper_quartile']:.3f}",
            ]
            for figure, values in results[precision].items()
        ]
        print(format_table(header, rows), flush=True)
    if options.output_file:
        record = {
            "date": datetime.date.today().isoformat(),
            "rounds": options.rounds,
            "results": results,
        }
        options.output_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
