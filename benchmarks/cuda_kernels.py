"""Time the CUDA kernels against the card's limits and PyTorch's own: `python cuda_kernels.py PART`.

Every figure is the median over replays of a graph that runs the kernel several times over
rotating inputs, larger together than the L2 cache where the kernel is bound by memory.
`--compile I/N` launches the part's kernels once without timing, every N-th from the I-th on, so
that several processes fill Triton's disk cache together.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import triton
from cuda_parts.attention import part_decode, part_prefill, part_tree
from cuda_parts.experts import part_moe
from cuda_parts.integers import part_int_tilings, part_ints
from cuda_parts.latents import part_latents
from cuda_parts.libraries import part_flash
from cuda_parts.products import part_fp8, part_gemm, part_gemv, part_limits
from cuda_parts.sampling import part_sampling
from cuda_parts.states import part_delta
from cuda_parts.steps import part_check, part_small, part_step
from cuda_parts.timing import Report

PARTS = {
    "limits": part_limits,
    "gemv": part_gemv,
    "gemm": part_gemm,
    "fp8": part_fp8,
    "ints": part_ints,
    "int_tilings": part_int_tilings,
    "decode": part_decode,
    "prefill": part_prefill,
    "flash": part_flash,
    "tree": part_tree,
    "latents": part_latents,
    "delta": part_delta,
    "moe": part_moe,
    "small": part_small,
    "sampling": part_sampling,
    "step": part_step,
    "check": part_check,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile", help="I/N: launch only, that share of the kernels")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("No GPU: nothing to time.")
    shard = tuple(map(int, options.compile.split("/"))) if options.compile else None
    report = Report(shard)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, triton {triton.__version__}", flush=True)
    with torch.inference_mode():
        PARTS[options.part](report)
    if options.out and shard is None:
        options.out.write_text(json.dumps(report.rows, indent=1))


if __name__ == "__main__":
    main()
