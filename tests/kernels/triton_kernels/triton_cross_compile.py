"""Compile every Triton kernel for a GPU that is not here: `python … cuda 90`.

For one by AMD, `python … hip gfx942`. ``--usage FILE`` writes what each variant takes, as JSON;
``--first`` compiles one variant of each.

Launches are caught on their way: what would run is compiled for the target with the arguments'
types instead, so that the signatures are those of real calls. Run as a process of its own, since
Triton chooses between interpreter and compiler when it is imported.
"""

# ruff: noqa: T201 - a script
from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from launch_catcher import SHARED, SHARED_ELSEWHERE, Compiler, lanes
from launched_compressed import (
    compile_entries,
    compile_hyper_connections,
    compile_making_of_entries,
)
from launched_kernels import (
    FakeDevice,
    compile_attention,
    compile_fp8,
    compile_ints,
    compile_latent,
    compile_lora,
    compile_moe,
    compile_peer_sum,
    compile_rest,
    compile_scores,
)
from launched_sparse import compile_chosen_blocks, compile_chosen_tokens, compile_streams
from launched_states import compile_delta, compile_states
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from usage_table import SPILLING

from headstock.ops.linear import DENSE, FP8_GROUP, INT4_GROUP, INT8_GROUP, MXFP4
from headstock.ops.narrow_pages import NARROW
from headstock_rocm.device import MATRIX_CORES
from headstock_triton import dense
from headstock_triton.fp8_formats import FORMATS
from headstock_triton.target import HOPPER, Target


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    parser.add_argument("arch")
    parser.add_argument("--usage", type=Path)
    parser.add_argument("--first", action="store_true")
    options = parser.parse_args()
    backend = options.backend
    is_cuda = backend == "cuda"
    arch = int(options.arch) if is_cuda else 0
    gpu = GPUTarget(backend, arch or options.arch, lanes(options.arch))
    compiler = Compiler(gpu, first=options.first)
    JITFunction.run = lambda kernel, *args, **kwargs: compiler(kernel, *args, **kwargs)
    has, is_hopper = arch >= 90, arch == HOPPER
    target = Target(
        kind=backend,
        arch=arch,
        num_sms=132,
        warp_size=lanes(options.arch),
        has_pdl=has,
        has_tma=has,
        has_wgmma=is_hopper,
    )
    Target.of = lambda device: target  # what is built is built for it
    FakeDevice.capabilities = MATRIX_CORES.get(options.arch, frozenset())
    assert dense is not None
    assert replace(target, num_sms=1).arch == arch
    compile_attention(target, torch.bfloat16, 32, 64)
    compile_attention(target, torch.bfloat16, 16, 64)
    compile_attention(target, torch.bfloat16, 32, 16)
    window, sinks, cap = "sliding_window", "sinks", "soft_cap"
    with_window = {"features": frozenset({window, sinks}), "window": 128}
    compile_attention(target, torch.bfloat16, 64, 64, 64, **with_window)
    compile_attention(target, torch.bfloat16, 16, 64, 256, features=frozenset({cap}), soft_cap=50.0)
    wide = {"features": frozenset({window, cap}), "window": 1024, "soft_cap": 50.0}
    compile_attention(target, torch.bfloat16, 16, 64, 256, **wide)
    if not target.has_small_warps:
        compile_attention(target, torch.bfloat16, 16, 64, 512)
        compile_attention(target, torch.bfloat16, 64, 64, 512)
    for kv_dtype in NARROW:
        compile_attention(target, torch.bfloat16, 16, 64, kv_dtype=kv_dtype)
    both = {"features": frozenset({"bidirectional"})}
    compile_attention(target, torch.bfloat16, 12, 64, 32, **both)
    chunked = {"features": frozenset({"chunked"}), "window": 8192}
    compile_attention(target, torch.bfloat16, 40, 64, **chunked)
    for heads, page_size in () if target.has_small_warps else ((128, 64), (16, 64), (20, 16)):
        compile_latent(target, torch.bfloat16, heads, page_size)
    for heads in () if target.has_small_warps else (128, 16):
        compile_chosen_tokens(target, torch.bfloat16, heads)
    compile_chosen_blocks(target, torch.bfloat16)
    compile_streams(target, torch.bfloat16)
    for heads in (64, 8):
        compile_entries(target, torch.bfloat16, heads)
    compile_making_of_entries(target, torch.bfloat16)
    compile_hyper_connections(target, torch.bfloat16)
    compile_scores(target, torch.bfloat16)
    compile_delta(target, torch.bfloat16)
    compile_states(target, torch.bfloat16)
    compile_ints(target, torch.bfloat16)
    compile_rest(target, torch.bfloat16)
    compile_lora(target, torch.bfloat16)
    compile_lora(target, torch.float32)
    compile_moe(target, torch.float32, DENSE, 0)
    layouts = ((DENSE, 0), (INT8_GROUP, 32), (INT4_GROUP, 32), (MXFP4, 32), (FP8_GROUP, 128))
    has_fp8 = bool(FakeDevice.capabilities & {kind.capability for kind in FORMATS})
    if has_fp8:
        compile_fp8(target, torch.bfloat16)
    for layout, group_size in layouts:
        is_known = layout != MXFP4 or target.converts_four_bit_floats
        if is_known and (layout != FP8_GROUP or target.arch >= 90 or has_fp8):
            compile_moe(target, torch.bfloat16, layout, group_size)
    if is_cuda:
        for size in (2, 4):
            compile_peer_sum(size)
    if options.usage:
        options.usage.write_text(json.dumps([asdict(each) for each in compiler.usages]))
    room = SHARED.get(options.arch, SHARED_ELSEWHERE)
    too_large = [each for each in compiler.usages if each.shared > room]
    assert not too_large, f"{options.arch} has {room} bytes to share: {too_large}"
    known = SPILLING.get(options.arch, set())
    spilled = [each for each in compiler.usages if each.spilled and each.kernel not in known]
    assert not spilled, f"registers lie in memory on {options.arch}: {spilled}"
    print(f"{len(compiler.usages)} kernels compiled for {backend} {options.arch}")


if __name__ == "__main__":
    main()
