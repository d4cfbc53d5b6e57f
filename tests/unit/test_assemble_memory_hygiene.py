"""What loading leaves behind goes back to the system; what somebody changed stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headstock.assemble.memory_hygiene import unchanged_code

MAPS = """\
1000-3000 r-xp 00000000 fe:00 11 /lib/one.so
Rss: 8 kB
Anonymous: 0 kB
VmFlags: rd ex mr
3000-4000 rw-p 00000000 fe:00 11 /lib/one.so
Anonymous: 0 kB
5000-6000 r-xp 00000000 fe:00 12 /lib/patched.so
Anonymous: 4 kB
7000-8000 r-xp 00000000 00:00 0 [vdso]
Anonymous: 0 kB
9000-a000 r-xp 00000000 00:00 0
Anonymous: 0 kB
b000-c000 r-xp 00000000 fe:00 13 /lib/with space.so (deleted)
Anonymous: 0 kB
"""


def test_only_code_that_equals_its_file_may_go() -> None:
    assert list(unchanged_code(MAPS)) == [(0x1000, 0x3000), (0xB000, 0xC000)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for its figures")
def test_freed_heap_goes_back_and_the_process_runs_on() -> None:
    code = """
import re
from pathlib import Path
from headstock.assemble.memory_hygiene import give_back_memory
def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
kept = []
freed = []
for _ in range(2000):
    freed.append(b"x" * 20_000)
    kept.append(b"y" * 600)
freed.clear()
before = resident()
give_back_memory()
assert before - resident() > 10_000, (before, resident())
assert sorted(map(len, kept))[0] == 600
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for its figures")
def test_after_a_large_block_a_burst_of_small_ones_still_goes_back() -> None:
    code = """
import re
from pathlib import Path
from headstock.assemble.memory_hygiene import keep_heap_small
def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
keep_heap_small()
large = bytearray(30_000_000)
del large
before = resident()
burst = [b"x" * 20_000 for _ in range(1000)]
grown = resident() - before
burst.clear()
assert grown > 15_000, grown
assert resident() - before < 2_000, (before, resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
