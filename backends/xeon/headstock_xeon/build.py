"""Compiles the native library of this backend: ``python -m headstock_xeon.build``.

Uses the standard library only, since the package's build hook runs it before anything is
installed. Each source is compiled for the instruction set that its name ends in; which one runs is
decided on the machine that loads the library. Objects are kept by content, so that a second build
compiles what has changed. Where the system has no compiler, that of the package ``ziglang`` serves.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE.parent / "native"
OBJECTS = PACKAGE.parent / "build"
LIBRARY = PACKAGE / "_native.so"
REASON = PACKAGE / "_native_missing.txt"
"""Why there is no library: what the last build said. The doctor shows it."""

COMPILERS = ("c++", "g++", "clang++")
CARRIED = "ziglang"
"""A package that carries a compiler."""
ANY_X86 = ("-mcpu=x86_64", "-g0", "-fno-sanitize=all")
"""Option that the carried compiler needs: by default it compiles for the machine at hand."""
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c")
BY_SUFFIX = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": AVX512,
    "vnni": (*AVX512, "-mavx512vnni"),
    "bf16x": (*AVX512, "-mavx512bf16"),
    "amx": (*AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
}
"""Flags of a source by the last word of its name; others are compiled for any x86-64."""
MODELLED = frozenset(BY_SUFFIX) - {"avx2"}
"""Sources compiled once more as a scalar model of their instructions, which runs anywhere."""
GCC = ("-fno-tree-ter",)
"""Keeps GCC from moving all loads of an unrolled block to its front, which spills accumulators."""
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer",
            "-fno-sanitize-recover=undefined")  # fmt: skip
FLAGS = {
    "--sanitize": "with address and undefined-behaviour checks",
    "--check": "build nothing; exit with 1 where a compiler is needed and there is none",
    "--if-possible": "exit with 0 although the kernels cannot be built: PyTorch computes instead",
}
FATAL = 1
FAILED = "The native kernels did not compile"


class BuildError(Exception):
    """There is no library, and why."""


@dataclass(frozen=True, slots=True)
class Build:
    """One way to compile the sources: the command, what it calls itself, flags for every source."""

    compiler: tuple[str, ...]
    version: str
    extra: tuple[str, ...] = ()
    library: Path = LIBRARY

    def run(self) -> Path:
        """Compile what has changed, link, and put the library in place at once.

        Raises:
            BuildError: With what the compiler said.
        """
        OBJECTS.mkdir(parents=True, exist_ok=True)
        sources, digest = sorted(SOURCES.glob("*.cpp")), sources_digest()
        parts = [(source, False) for source in sources]
        parts += [(source, True) for source in sources if last_word(source) in MODELLED]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            jobs = [pool.submit(self._compile, *part, digest) for part in parts]
            objects = [job.result() for job in jobs]
        self.library.parent.mkdir(parents=True, exist_ok=True)
        made = self.library.with_suffix(f".{os.getpid()}.tmp")
        call([*self.compiler, "-shared", "-pthread", *self.extra, "-o", str(made), *objects])
        made.replace(self.library)  # A process that has the old one keeps it.
        return self.library

    def _compile(self, source: Path, is_model: bool, digest: str) -> str:
        flags = [*COMMON, *self.extra]
        flags += ["-DHS_MODEL", "-O1"] if is_model else BY_SUFFIX.get(last_word(source), ())
        flags += [] if "clang" in self.version else GCC
        flags += [f'-DHS_SOURCES="{digest}"'] if source.stem == "api" else []
        key = hashlib.sha256()
        for part in (*self.compiler, self.version, *flags):
            key.update(part.encode() + b"\0")
        for file in (source, *sorted(SOURCES.glob("*.h"))):
            key.update(file.read_bytes() + b"\0")
        name = source.stem + ("-model" if is_model else "") + ("-checked" if self.extra else "")
        made = OBJECTS / f"{name}.{key.hexdigest()[:16]}.o"
        if not made.exists():
            partial = made.with_suffix(f".{os.getpid()}.tmp")
            call([*self.compiler, *flags, "-c", str(source), "-o", str(partial)])
            for stale in OBJECTS.glob(f"{name}.*.o"):
                stale.unlink(missing_ok=True)
            partial.replace(made)
        return str(made)


def last_word(source: Path) -> str:
    """Return what a source's name says of its instruction set."""
    return source.stem.rpartition("_")[2]


def sources_digest() -> str:
    """Return a digest of all sources: the library carries that of what it was made from."""
    digest = hashlib.sha256()
    for file in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_compiler() -> tuple[tuple[str, ...], str]:
    """Return the command of a C++ compiler, the system's own first, and its version line.

    Raises:
        BuildError: There is none, or this is no x86-64 machine.
    """
    if not is_x86():
        raise BuildError(f"the kernels are for x86-64, this machine is {platform.machine()}")
    found = [path for name in COMPILERS if (path := shutil.which(name))]
    if found:
        return (found[0],), call([found[0], "--version"]).partition("\n")[0]
    if importlib.util.find_spec(CARRIED) is not None:
        carried = (sys.executable, "-m", CARRIED, "c++")
        return (*carried, *ANY_X86), call([*carried, "--version"]).partition("\n")[0]
    raise BuildError(f"no C++ compiler: looked for {', '.join(COMPILERS)}, and for {CARRIED}")


def is_x86() -> bool:
    """Whether the kernels are for this machine's processor."""
    return platform.machine().lower() in ("x86_64", "amd64")


def is_up_to_date() -> bool:
    """Whether there is a library of these sources."""
    return LIBRARY.exists() and sources_digest().encode() in LIBRARY.read_bytes()


def call(command: list[str]) -> str:
    """Run ``command`` and return what it printed.

    Raises:
        BuildError: It failed; with the end of what it said.
    """
    # The carried compiler keeps its caches in the home directory, which may be read-only.
    caches = {f"ZIG_{kind}_CACHE_DIR": str(OBJECTS / "cache") for kind in ("GLOBAL", "LOCAL")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **caches}
    )
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-20:])
        raise BuildError(f"{Path(command[0]).name} failed on {command[-3]}:\n{said}")
    return done.stdout


def build(*, is_sanitized: bool = False) -> Path:
    """Make the library, or record why there is none.

    Args:
        is_sanitized: With address and undefined-behaviour checks, beside the ordinary one.

    Raises:
        BuildError: There is no library now.
    """
    try:
        if not SOURCES.is_dir():
            raise BuildError(f"there are no sources at {SOURCES}: this is not a source checkout")
        found = find_compiler()
        if is_sanitized:
            return Build(*found, SANITIZE, OBJECTS / "sanitized" / "_native.so").run()
        made = Build(*found).run()
    except BuildError as error:
        if not is_sanitized and not is_up_to_date():
            REASON.write_text(str(error) + "\n")
        raise
    REASON.unlink(missing_ok=True)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Build, and say what was made."""
    parser = argparse.ArgumentParser(prog="python -m headstock_xeon.build", description=__doc__)
    for flag, what in FLAGS.items():
        parser.add_argument(flag, action="store_true", help=what)
    options = parser.parse_args(arguments)
    if options.check:
        has_one = importlib.util.find_spec(CARRIED) or any(map(shutil.which, COMPILERS))
        is_needed = is_x86() and SOURCES.is_dir() and not is_up_to_date()
        return int(is_needed and not has_one)
    try:
        made = build(is_sanitized=options.sanitize)
    except BuildError as error:
        if options.if_possible and is_up_to_date():
            return 0
        instead = ". PyTorch computes instead, more slowly" if options.if_possible else ""
        sys.stderr.write(f"{FAILED}: {error}{instead}.\n")
        return 0 if options.if_possible else FATAL
    sys.stdout.write(f"{made}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
