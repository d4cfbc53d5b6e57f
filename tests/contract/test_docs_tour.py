"""The tour names what is there, and counts the files of a request truly."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from headstock.checkpoint.pull import cached_path, find

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "headstock"
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`([\w/]+(?:\.py|/))`", TOUR)))
SLACK = 4
"""How many files the tour may be off: a new helper needs no new page."""


def is_there(path: str) -> bool:
    return any((folder / path).exists() for folder in (ROOT, CORE, CORE / "assemble"))


def test_every_file_and_folder_that_the_tour_names_exists() -> None:
    assert len(PATHS) > 50
    assert [path for path in PATHS if not is_there(path)] == []


def test_it_is_seen_when_a_file_does_not_exist() -> None:
    assert not is_there("runner/mail.py")


@pytest.mark.slow
def test_the_tour_counts_the_files_of_a_chat_request() -> None:
    if not cached_path(find("smollm2")).is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    script = Path(__file__).with_name("walked_files.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=True
    )
    names = done.stdout.split()
    rooms = Counter(name.partition("/")[0] for name in names)
    said = re.search(r"runs code of\s+(\d+) files: ((?:\d+ of [^,.]+,\s+)+)", TOUR)
    assert said is not None
    assert abs(int(said[1]) - len(names)) <= SLACK
    parts = re.findall(r"(\d+) of\s+([^,]+)", said[2])
    assert len(parts) >= 4
    for count, text in parts:
        there = sum(rooms[room] for room in re.findall(r"`(\w+)`", text))
        assert abs(int(count) - there) <= SLACK, f"{text}: {there}"
