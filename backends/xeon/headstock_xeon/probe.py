"""What this x86-64 processor can do, from /proc/cpuinfo."""

from __future__ import annotations

import platform
from pathlib import Path

from headstock.plugins.cores import processors
from headstock.plugins.probe import Probe, ProbedDevice, Status

SCORE = 10
NEEDED = frozenset({"avx2", "fma", "f16c"})
ARCHS = (  # best first: its name, and the flags that make it
    ("amx", frozenset({"amx_tile", "amx_bf16", "amx_int8", "avx512f"})),
    ("avx512_bf16", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16"})),
    ("avx512_vnni", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni"})),
    ("avx512", frozenset({"avx512f", "avx512bw", "avx512vl"})),
    ("avx_vnni", frozenset({"avx2", "avx_vnni"})),
    ("avx2", frozenset({"avx2"})),
)


def probe(root: Path = Path("/"), machine: str | None = None) -> Probe:
    """Look at the machine whose file system is at ``root``.

    Args:
        root: Where ``proc`` is.
        machine: Its instruction set; this machine's own when not given.
    """
    machine = machine or platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return _absent(f"the processor is {machine or 'unknown'}, not x86-64")
    try:
        processor = read_fields(root / "proc/cpuinfo")
    except OSError:
        return _absent("there is no /proc/cpuinfo to read, as on Linux")
    name, flags = processor.get("model name") or "x86-64", processor.get("flags", "").split()
    missing = NEEDED.difference(flags)
    if missing:
        return _absent(f"{name} lacks {', '.join(sorted(missing))}")
    arch = next(name for name, needed in ARCHS if needed.issubset(flags))
    memory = read_memory(root / "proc/meminfo")
    return Probe(
        status=Status.AVAILABLE,
        reason=f"{name}, {len(processors())} cores, {arch}",
        score=SCORE,
        devices=(ProbedDevice(is_host=True, index=0, name=name, arch=arch, memory_bytes=memory),),
    )


def read_fields(path: Path) -> dict[str, str]:
    """Return the first value of each field; of a processor's those of the first one."""
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def read_memory(meminfo: Path) -> int | None:
    """Return the machine's memory in bytes, None where the system does not say."""
    total = read_fields(meminfo).get("MemTotal") if meminfo.exists() else None
    return int(total.split()[0]) * 1024 if total else None


def _absent(reason: str) -> Probe:
    return Probe(status=Status.ABSENT, reason=reason, score=SCORE)
