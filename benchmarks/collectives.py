#!/usr/bin/env python3
"""Time the collectives of GPUs of one host, captured as a step has them.

    python benchmarks/collectives.py --out collectives.json

For each size: microseconds an all-reduce of bfloat16, by our two kernels and by NCCL, in a graph
of 50 one after another; the median of 20 replays on rank 0. Then an all-gather of logits and a
broadcast of drawn ids by NCCL.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from pathlib import Path

import torch

from headstock.plugins.hooks import GroupInfo
from headstock_cuda import peer_sum
from headstock_cuda.peer_sum import open_peer_sum
from headstock_triton.gpu.communication import GpuGroup

SIZES = [2**n for n in range(11, 25)]
REPEATS, REPLAYS = 50, 20


def timed(call, device: torch.device) -> float:
    """Return microseconds a call, in a graph."""
    for _ in range(3):
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(REPEATS):
            call()
    found = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(device)
        found.append(1e3 * start.elapsed_time(end) / REPEATS)
    return statistics.median(found)


def rank_main(rank: int, size: int, folder: str, results) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    peer_sum.MOST_IN_WORDS[size] = peer_sum.MOST_IN_BLOCKS[size] = SIZES[-1]
    info = GroupInfo(name="bench", rank=rank, size=size, address=f"file://{folder}/bench")
    group = GpuGroup(info, device, open_small_sum=open_peer_sum)
    small = group._small
    found = {"ranks": size, "has_peers": small is not None, "all_reduce_us": [], "other_us": {}}
    for num_bytes in SIZES:
        x = torch.zeros(num_bytes // 2, dtype=torch.bfloat16, device=device)
        own = {}
        if small is not None:
            own["words"] = timed(lambda x=x: small.add_in_words(x), device)
            own["blocks"] = timed(lambda x=x: small.add_in_blocks(x), device)
        nccl = timed(lambda x=x: group._wait(group._group.allreduce([x], group._sum)), device)
        found["all_reduce_us"].append({"bytes": num_bytes, **own, "nccl": nccl})
    for rows in (1, 256):
        logits = torch.zeros((rows, 151936 // size), dtype=torch.bfloat16, device=device)
        ids = torch.zeros(rows, dtype=torch.int64, device=device)
        found["other_us"][f"gather of logits, {rows} rows"] = timed(
            lambda logits=logits: group.all_gather(logits), device
        )
        found["other_us"][f"broadcast of ids, {rows} rows"] = timed(
            lambda ids=ids: group.broadcast(ids), device
        )
    if rank == 0:
        results.put(found)
    group.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            spawn.Process(target=rank_main, args=(rank, options.size, folder, results))
            for rank in range(options.size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    found = results.get()
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
