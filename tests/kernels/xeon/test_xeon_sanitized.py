"""The tests of the native kernels once more, with address and undefined-behaviour checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headstock_xeon import build

HERE = Path(__file__).parent
WITH_SANITIZED = """
import sys
from pathlib import Path
from headstock_xeon import build, native
build.LIBRARY = Path(sys.argv[1])
native.load.__defaults__ = (build.LIBRARY,)
import pytest
raise SystemExit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kernels_touch_nothing_that_is_not_theirs() -> None:
    try:
        library = build.build(is_sanitized=True)
        compiler, version = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    if "clang" in version:
        pytest.skip("the preload below is GCC's")
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    preload = [build.call([*compiler, f"-print-file-name={name}"]).strip() for name in names]
    tests = [
        str(file)
        for file in sorted(HERE.glob("test_xeon_*.py"))
        if file.name != Path(__file__).name
    ]
    command = [
        sys.executable,
        "-c",
        WITH_SANITIZED,
        str(library),
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-k", "not idle and not pauses", *tests],
        env={
            "LD_PRELOAD": " ".join(preload),
            "ASAN_OPTIONS": "detect_leaks=0",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
