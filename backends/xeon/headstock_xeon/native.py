"""The native library: loading it, and its C functions with their types."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from headstock.errors import PluginError
from headstock_xeon import build

MAX_ARGS = 24
"""Arguments an instruction can have, as in ``program.h``."""
SETS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
FEATURES = {name: 1 << bit for bit, name in enumerate(SETS)}
"""Bits of ``hs_detect``; the names are the device's capabilities."""
MODEL = 1 << 20
"""Added to features: run the kernels of sets above AVX2 as scalar models, on any machine."""
MEASURED = 1 << 21
"""Added to features: of each kind of weight take the kernel that is quickest here."""
REBUILD = "Run `python -m headstock_xeon.build` in the source checkout, or reinstall headstock."
NO_COMPILER = (
    "Install a C++ compiler, such as the system's package g++ or `pip install ziglang`, then run"
    " `python -m headstock_xeon.build` in the source checkout; outside of one, reinstall headstock."
)

_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "hs_sources": (c_char_p, ()),
    "hs_detect": (c_int64, ()),
    "hs_kernel_count": (c_int64, ()),
    "hs_kernel_name": (c_char_p, (c_int64,)),
    "hs_open": (c_void_p, (c_int64,) * 3),
    "hs_bind": (None, (c_void_p, c_void_p, c_int64)),
    "hs_close": (None, (c_void_p,)),
    "hs_run": (c_int64, (c_void_p, c_void_p, c_int64)),
    "hs_program_new": (c_void_p, (c_void_p, c_void_p, c_int64)),
    "hs_program_run": (c_int64, (c_void_p, c_void_p)),
    "hs_program_free": (None, (c_void_p, c_void_p)),
    "hs_pages_new": (c_void_p, (c_int64,)),
    "hs_pages_free": (None, (c_void_p, c_int64)),
    "hs_weight_new": (c_void_p, (c_void_p,) + (c_int64,) * 4),
    "hs_weight_free": (None, (c_void_p,)),
    "hs_weight_bytes": (c_int64, (c_void_p,)),
    "hs_weight_bias": (c_void_p, (c_void_p,)),
    "hs_weight_kernel": (c_char_p, (c_void_p,)),
    "hs_weight_choice": (c_char_p, (c_void_p, c_int64, c_int64)),
    "hs_weight_pack": (
        c_int64,
        (c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p) + (c_int64,) * 3,
    ),
    "hs_attention_new": (c_void_p, (c_void_p,) + (c_int64,) * 8),
    "hs_attention_free": (None, (c_void_p,)),
}


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded library.

    Attributes:
        calls: Its functions, typed. They release the interpreter lock.
        kernels: Number of each kernel by name.
        features: What this processor can do, as a sum of :data:`FEATURES`.
        sources: Digest of the sources it was made from.
    """

    calls: ctypes.CDLL
    kernels: dict[str, int]
    features: int
    sources: str

    def capabilities(self, features: int) -> frozenset[str]:
        """Return the names of ``features``."""
        return frozenset(name for name, bit in FEATURES.items() if features & bit)


def load(path: Path | None = None) -> Library:
    """Load the library at ``path``; where it was built when not given.

    Raises:
        PluginError: It is not there, with the reason the build left, or does not load.
    """
    path = path or build.LIBRARY
    if not path.exists():
        raise PluginError(
            f"The native kernels are missing: {why_missing()}.", remedy=how_to_build()
        )
    try:
        calls = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(calls, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise PluginError(f"The native kernels do not load: {error}.", remedy=REBUILD) from error
    count = calls.hs_kernel_count()
    kernels = {calls.hs_kernel_name(i).decode(): i for i in range(count)}
    return Library(calls, kernels, calls.hs_detect(), calls.hs_sources().decode())


def how_to_build() -> str:
    """Return what to do about a library that is missing or old."""
    try:
        build.find_compiler()
    except build.BuildError:
        if build.is_x86():
            return NO_COMPILER
    return REBUILD


def why_missing() -> str:
    """Return what the last build said, in one line."""
    if build.REASON.exists():
        return " ".join(build.REASON.read_text().split()).rstrip(".")
    return "they were never built"
