"""Headstock's CPU engine against llama.cpp, vLLM and OpenVINO GenAI: same model, same client.

    python benchmarks/cpu_peers.py FOLDER --prepare llama,vllm,openvino    build or install them
    python benchmarks/cpu_peers.py FOLDER                                  measure; 20 minutes
    python benchmarks/cpu_peers.py FOLDER --servers headstock-int8,llama-q8_0 --rounds 5
    python benchmarks/cpu_peers.py FOLDER --base CLONE --servers headstock-int4,base-int4
    python benchmarks/cpu_peers.py FOLDER --tiny                           to see that it runs

One server at a time, each as often as there are rounds, A B A B; the figures are medians over the
rounds. Everything is greedy and goes past EOS; prompts are random ids, other ones each round and
the same for every engine. Writes benchmarks/results/cpu-peers-DATE.json.

one      1 stream, 64 in / 128 out: time to first token, tokens a second after it
many     16 at once, 128 in / 64 out: output tokens a second over the wall time
prefix   16 at once that share 512 tokens and have 8 of their own, 32 out, nothing cached
memory   proportional set size of all processes, a cache of 16,384 tokens written throughout
start    from starting the process to ready, less a bare ``import torch`` in the same round
offline  the workload "many" within the engine's own process: ours and OpenVINO GenAI
bytes    one stream's weight bytes a second, as a share of what reading memory reached just before:
         in the median of many passes, and, further down, in the best of them
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_load
from machine_limits import measure_limits
from peer_engines import PeerServer, prepare, servers
from peer_load import TINY, Sizes

from headstock.checkpoint.gguf_model import open_gguf
from headstock.checkpoint.pull import ensure
from headstock.cli.table import format_table

HERE = Path(__file__).parent
SLOW_PREFIX = ("llama",)
"""Servers that compute a common prefix once a request: half a minute each time, one round only."""
FIGURES = ("decode_tok_s", "ttft_ms", "many_tok_s", "prefix_tok_s", "pss_mib", "start_s", "ready_s")
MORE_IS_BETTER = ("tok_s", "share", "share_of_best")
Samples = dict[str, dict[str, list[float]]]
"""By engine and figure; one value a round."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What one figure of ours must be, against the best of the others.

    Attributes:
        figure: Key of the samples.
        ours: Engine.
        peers: Engines; the best of those measured counts.
        limit: Ratio ours / theirs.
        is_floor: Whether more is better.
    """

    what: str
    figure: str
    ours: str
    peers: tuple[str, ...]
    limit: float
    is_floor: bool = True


LLAMA = ("llama-q4_0", "llama-q4_1", "llama-q8_0")
BARS = (
    Bar("1 stream, 4 bits: tokens/s", "decode_tok_s", "headstock-int4", LLAMA[:2], 1.35),
    Bar("1 stream, 8 bits: tokens/s", "decode_tok_s", "headstock-int8", LLAMA[2:], 1.35),
    Bar("1 stream, 4 bits: TTFT", "ttft_ms", "headstock-int4", LLAMA[:2], 0.6, is_floor=False),
    Bar("1 stream, 8 bits: TTFT", "ttft_ms", "headstock-int8", LLAMA[2:], 0.6, is_floor=False),
    Bar("16 at once: tokens/s", "many_tok_s", "headstock-int4", LLAMA, 1.7),
    Bar("16 at once, 8 bits: tokens/s", "many_tok_s", "headstock-int8", LLAMA, 1.7),
    Bar("16 at once, offline", "offline_tok_s", "headstock-offline", ("openvino-offline",), 1.25),
    Bar("shared prefix", "prefix_tok_s", "headstock-int4", LLAMA, 10),
    Bar("shared prefix", "prefix_tok_s", "headstock-int4", ("vllm-float32",), 1.6),
    Bar("shared prefix, float32", "prefix_tok_s", "headstock-float32", ("vllm-float32",), 1.6),
    Bar("memory", "pss_mib", "headstock-int4", LLAMA[:2], 1.5, is_floor=False),
    Bar("memory, 8 bits", "pss_mib", "headstock-int8", LLAMA[2:], 1.5, is_floor=False),
)
START_LIMIT_S = 2.0
BYTES_SHARE = 0.6
SHARE_OF = "headstock-int8"
"""Whose share of the byte limit is judged."""


def measure_server(
    server: PeerServer, sizes: Sizes, round_number: int, is_last: bool
) -> dict[str, float]:
    """Start a server and run every workload on it once."""
    with peer_load.started(server) as running:
        found = {"ready_s": running.start_s}
        peer_load.warm_up(running, sizes)
        found |= peer_load.one_stream(running, sizes, round_number)
        found |= peer_load.many_streams(running, sizes, round_number)
        if round_number == 0 or not server.name.startswith(SLOW_PREFIX):
            found |= peer_load.shared_prefix(running, sizes, round_number)
        if is_last:
            found |= peer_load.memory(running, server, sizes)
        return found


def measure_offline(folder: Path, sizes: Sizes, threads: int) -> Iterator[tuple[str, float]]:
    """Yield engine and output tokens a second, of the workload "many" without a server."""
    pythons = {"headstock": sys.executable, "openvino": str(folder / "openvino/bin/python")}
    for engine, python in pythons.items():
        command = [python, str(HERE / "peer_offline.py"), engine, str(ensure("smollm2"))]
        numbers = (threads, 1, sizes.streams, sizes.many_input, sizes.many_output)
        command += [str(number) for number in numbers]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        line = [line for line in said.splitlines() if line.startswith("{")][-1]
        yield f"{engine}-offline", json.loads(line)["many_tok_s"]


def import_seconds() -> float:
    """Return how long a bare ``import torch`` takes, interpreter included."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - begin


def weight_bytes(path: Path) -> float:
    """Return the bytes of the matrices that a token needs, at 8 bits and a scale for each 32."""
    shapes = [tensor.shape for tensor in open_gguf(path).index.values()]
    return sum(rows * columns for rows, columns in (s for s in shapes if len(s) == 2)) * 34 / 32


def run_rounds(
    chosen: list[PeerServer], folder: Path, options: argparse.Namespace, sizes: Sizes
) -> tuple[Samples, dict[str, list[float]]]:
    """Measure all, round by round; also what the machine itself did meanwhile."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    limits: dict[str, list[float]] = defaultdict(list)
    for number in range(options.rounds):
        limits["import_torch_s"].append(import_seconds())
        for server in chosen:
            is_last = number == options.rounds - 1
            # A shared machine's memory is faster one minute than the next.
            limit = measure_limits(options.threads) if server.name == SHARE_OF else {}
            found = measure_server(server, sizes, number, is_last)
            found["start_s"] = found["ready_s"] - limits["import_torch_s"][-1]
            if limit:
                read = found["decode_tok_s"] * weight_bytes(ensure("smollm2"))
                for share, of in (
                    ("share", "median_read_bytes_s"),
                    ("share_of_best", "read_bytes_s"),
                ):
                    found[share] = read / limit[of]
                    limits[of].append(limit[of])
            tell(number, server.name, found)
            for figure, value in found.items():
                samples[server.name][figure].append(value)
        if options.offline:
            for name, rate in measure_offline(folder, sizes, options.threads):
                tell(number, name, {"offline_tok_s": rate})
                samples[name]["offline_tok_s"].append(rate)
    return samples, limits


def tell(number: int, name: str, found: dict[str, float]) -> None:
    text = ", ".join(f"{figure} {value:.3g}" for figure, value in found.items())
    print(f"round {number}, {name}: {text}", file=sys.stderr, flush=True)


def medians(samples: Samples) -> dict[str, dict[str, float]]:
    return {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in samples.items()
    }


def bests(samples: Samples) -> dict[str, dict[str, float]]:
    """Return each engine's best round of each figure: what it does when nothing disturbs it."""
    return {
        name: {
            figure: (max if figure.endswith(MORE_IS_BETTER) else min)(values)
            for figure, values in figures.items()
        }
        for name, figures in samples.items()
    }


def compare(middle: dict[str, dict[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield every bar whose sides were measured."""
    for bar in BARS:
        theirs = {
            peer: middle[peer][bar.figure]
            for peer in bar.peers
            if bar.figure in middle.get(peer, {})
        }
        if not theirs or bar.figure not in middle.get(bar.ours, {}):
            continue
        best = (max if bar.is_floor else min)(theirs, key=lambda peer: theirs[peer])
        value = middle[bar.ours][bar.figure] / theirs[best]
        sign, is_met = ("≥", value >= bar.limit) if bar.is_floor else ("≤", value <= bar.limit)
        yield {
            "what": bar.what, "ours": bar.ours, "against": best, "value": value,
            "goal": f"{sign} {bar.limit:g} ×", "is_met": is_met,
        }  # fmt: skip
    for name in ("headstock-int4", "headstock-int8"):
        if "start_s" in middle.get(name, {}):
            value = middle[name]["start_s"]
            yield {
                "what": "start to ready beyond `import torch`: s", "ours": name, "against": "",
                "value": value, "goal": f"≤ {START_LIMIT_S:g} s", "is_met": value <= START_LIMIT_S,
            }  # fmt: skip
    if "share" in middle.get(SHARE_OF, {}):
        value = middle[SHARE_OF]["share"]
        yield {
            "what": "1 stream, 8 bits: share of the byte limit", "ours": SHARE_OF,
            "against": "", "value": value, "goal": f"≥ {BYTES_SHARE:g}",
            "is_met": value >= BYTES_SHARE,
        }  # fmt: skip


def tables(middle: dict[str, dict[str, float]], bars: list[dict[str, Any]]) -> str:
    shown = (*FIGURES, "offline_tok_s")
    rows = [
        (name, *(f"{figures[f]:.1f}" if f in figures else "-" for f in shown))
        for name, figures in middle.items()
    ]
    lines = [format_table(("engine", *shown), rows), ""]
    judged = [
        (b["what"], b["ours"], b["against"], f"{b['value']:.2f}", b["goal"],
         "yes" if b["is_met"] else "NO")
        for b in bars
    ]  # fmt: skip
    lines.append(format_table(("what", "ours", "against", "value", "goal", "met"), judged))
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Describe where this ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return {"processor": name, "load_before": Path("/proc/loadavg").read_text().split()[0]}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the peers are, or shall be")
    parser.add_argument("--prepare", metavar="PEERS", help="llama, vllm, openvino: get them, end")
    parser.add_argument("--servers", default="headstock-int4,headstock-int8," + ",".join(LLAMA))
    parser.add_argument(
        "--base", type=Path, metavar="CLONE",
        help="another clone of ours with its own .venv; its servers are base-int4, …",
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="OpenVINO GenAI as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--output-file", type=Path, help="in place of results/cpu-peers-DATE.json")
    return parser.parse_args(arguments)


def main() -> int:
    options = options_of()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Servers end with us.
    folder: Path = options.folder.absolute()
    if options.prepare:
        prepare(folder, options.prepare.split(","))
        return 0
    known = servers(folder, options.threads, options.base)
    names = [name for name in options.servers.split(",") if name]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"There is no server {', '.join(unknown)}; servers: {', '.join(known)}.")
    report: dict[str, Any] = {"command": " ".join(sys.argv), "machine": machine()}
    sizes = TINY if options.tiny else Sizes()
    samples, limits = run_rounds([known[name] for name in names], folder, options, sizes)
    middle = medians(samples)
    best = bests(samples)
    bars, best_bars = list(compare(middle)), list(compare(best))
    print("medians of the rounds", tables(middle, bars), sep="\n")
    print("\nbest rounds, should other work have come and gone", tables(best, best_bars), sep="\n")
    if "share_of_best" in middle.get(SHARE_OF, {}):
        print(f"share of the best pass's bytes: {middle[SHARE_OF]['share_of_best']:.2f}")
    print(", ".join(f"{name} {statistics.median(v):.3g}" for name, v in limits.items()))
    report |= {"limits": limits, "samples": samples, "medians": middle, "bars": bars}
    report |= {"bests": best, "best_bars": best_bars}
    target = options.output_file
    if target is None and not options.tiny:
        target = HERE / "results" / f"cpu-peers-{datetime.date.today()}.json"
    if target is not None:
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written to {target}")
    return 0 if all(bar["is_met"] for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
