"""Compiles for a GPU that is not here what a launch would run, and says what it takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
}

SHARED = {"80": 166_912, "90": 232_448, "100": 232_448, "120": 101_376, "gfx950": 163_840}
SHARED_ELSEWHERE = 65_536
"""Most that a block may share. Bytes."""


@dataclass(frozen=True)
class Usage:
    """What one variant of a kernel takes.

    Attributes:
        kernel: Its name.
        registers: Of each thread.
        spilled: What of its registers lies in memory instead: NVIDIA's compiler says bytes, AMD's
            registers.
        shared: Memory that the threads of a block share. Bytes.
    """

    kernel: str
    registers: int
    spilled: int
    shared: int


class Compiler:
    """Stands in for ``JITFunction.run``.

    Args:
        target: What is compiled for.
        first: Whether to compile the first variant of each kernel alone.
    """

    def __init__(self, target: GPUTarget, *, first: bool = False) -> None:
        self.target = target
        self.first = first
        self.seen: set[object] = set()
        self.usages: list[Usage] = []

    def __call__(self, kernel, *args, grid, warmup, **kwargs):
        names = [p.name for p in kernel.params]
        bound = dict(zip(names, args, strict=False))
        bound |= {k: v for k, v in kwargs.items() if k in names}
        options = {k: v for k, v in kwargs.items() if k not in names}
        signature, constants, attributes = {}, {}, {}
        for index, param in enumerate(kernel.params):
            value = bound[param.name]
            if param.is_constexpr or value is None:
                signature[param.name] = "constexpr"
                constants[(index,)] = value
            elif isinstance(value, torch.Tensor):
                signature[param.name] = "*" + TYPES[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif value == 1 and param.name not in (kernel.do_not_specialize or ()):
                # Triton makes a constant of it, which has fewer methods than a number.
                signature[param.name] = "constexpr"
                constants[(index,)] = value
            elif isinstance(value, int):
                signature[param.name] = "i32"
                if value % 16 == 0 and param.name not in (kernel.do_not_specialize or ()):
                    attributes[(index,)] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[param.name] = "fp32"
            else:
                block = ",".join(map(str, value.block_shape))
                layout = f",{value.layout!r}" if kernel.is_gluon() else ""
                signature[param.name] = f"tensordesc<{TYPES[value.base.dtype]}[{block}]{layout}>"
        key = (kernel.__name__, str(signature), str(constants), str(attributes), str(options))
        key = key[:1] if self.first else key
        if key in self.seen:
            return
        self.seen.add(key)
        if self.target.backend != "cuda" or self.target.arch < 90:
            options.pop("launch_pdl", None)
        build = GluonASTSource if kernel.is_gluon() else ASTSource
        source = build(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self.target, options=options)
        if self.target.backend == "cuda":  # what the compiler could not make sense of
            assert "trap;" not in compiled.asm["ptx"], f"{kernel.__name__} is a trap: {constants}"
        self.usages.append(self.measure(kernel, compiled))

    def measure(self, kernel, compiled) -> Usage:
        """Return what the compiled kernel takes."""
        if self.target.backend == "hip":
            numbers = dict(re.findall(r"\.(\w+):\s+(\d+)", compiled.asm["amdgcn"]))
            registers = int(numbers["vgpr_count"])
            spilled = int(numbers["vgpr_spill_count"])  # scalars spill into these, not to memory
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "kernel.cubin"
                path.write_bytes(compiled.asm["cubin"])
                tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
                printed = subprocess.run(
                    [tool, "-res-usage", path], capture_output=True, text=True, check=True
                ).stdout
            registers, spilled = (
                max(map(int, re.findall(rf"{word}:(\d+)", printed))) for word in ("REG", "LOCAL")
            )
        return Usage(kernel.__name__, registers, spilled, compiled.metadata.shared)


def lanes(arch: str) -> int:
    """Return the threads of a warp, which AMD's GPUs for data centres have more of."""
    return 64 if arch.startswith("gfx9") else 32
