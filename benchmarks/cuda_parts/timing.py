"""How kernels are timed: in graphs that run them over inputs that outgrow the cache."""

import json
import statistics

import torch

DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
L2_BYTES = 64 << 20
PDL = True


class Here:
    torch_device = DEVICE
    capabilities = frozenset({"sm_90"})
    num_threads = 1


class Report:
    """Prints each result as a line of JSON, and keeps them."""

    def __init__(self, shard: tuple[int, int] | None) -> None:
        self.rows: list[dict] = []
        self.shard = shard
        self.turn = 0

    def time(self, name: str, calls, *, num_bytes=0, flops=0, timer=None, **facts) -> float | None:
        """Time ``calls`` (functions of no arguments, or what makes them); report per call."""
        self.turn += 1
        if self.shard is not None and self.turn % self.shard[1] != self.shard[0]:
            return None
        try:
            made = calls() if callable(calls) else calls
            if self.shard is not None:
                made[0]()
                torch.cuda.synchronize()
                return None
            us = (timer or time_graph)(made)
            del made
        except Exception as error:  # noqa: BLE001 - one bad configuration is a result too
            self.add(name, error=f"{type(error).__name__}: {str(error)[:160]}", **facts)
            return None
        row = {"us": round(us, 2), **facts}
        if num_bytes:
            row["gb_s"] = round(num_bytes / us / 1e3)
        if flops:
            row["tflop_s"] = round(flops / us / 1e6, 1)
        self.add(name, **row)
        return us

    def add(self, name: str, **facts) -> None:
        row = {"name": name, **facts}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def best(self, name: str) -> None:
        """Say which of the rows called ``name`` is the fastest, by case."""
        cases: dict[str, list[dict]] = {}
        for row in self.rows:
            if row["name"] == name and "us" in row:
                cases.setdefault(str(row.get("case")), []).append(row)
        for case, rows in cases.items():
            top = sorted(rows, key=lambda r: r["us"])[:3]
            print(f"BEST {name} {case}: " + " | ".join(json.dumps(r) for r in top), flush=True)


def time_graph(calls, replays: int = 7) -> float:
    """Return the median microseconds of one of ``calls`` within a graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    repeats = max(1, 8 // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    times = []
    for _ in range(replays + 2):
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (repeats * len(calls)))
    return statistics.median(times[2:])


def time_eager(calls, repeats: int = 7) -> float:
    """Return the median microseconds of one of ``calls``, launched one by one: for long ones."""
    times = []
    for call in [*calls[:2], *calls * repeats]:
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[2:])


def copies_for(num_bytes: int) -> int:
    """Return how many inputs together outgrow the L2 cache, within reason."""
    return max(2, min(64, -(-3 * L2_BYTES // max(num_bytes, 1))))


def randn(*shape, dtype=BF16):
    return torch.randn(shape, dtype=torch.float32, device=DEVICE).to(dtype)
