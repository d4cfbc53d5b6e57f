"""oneDNN's cache of compiled products has a bound that is in force when the first one is made."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headstock_xeon.primitives import CAPACITIES, NUM_KEPT, bound_primitives

GROWTH = """
import sys
import torch
from headstock_xeon.primitives import bound_primitives
if sys.argv[1] == "bounded":
    bound_primitives()
def anon():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
torch.set_num_threads(1)
weight = torch.ones(64, 64, dtype=torch.bfloat16)
def multiply(sizes):
    for size in sizes:
        torch.nn.functional.linear(torch.ones(size, 64, dtype=torch.bfloat16), weight)
multiply(range(1, 200))
before = anon()
multiply(range(200, 900))
print(anon() - before)
"""


@pytest.mark.parametrize("name", CAPACITIES)
def test_the_operator_s_own_bound_is_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for each in CAPACITIES:
        monkeypatch.setenv(each, "7")
    monkeypatch.delenv(name)
    bound_primitives()
    assert {each: os.environ[each] for each in CAPACITIES} == {
        each: str(NUM_KEPT) if each == name else "7" for each in CAPACITIES
    }


@pytest.mark.slow
def test_products_of_new_shapes_do_not_grow_a_process_for_ever() -> None:
    grown = {}
    for how in ("bounded", "as it is"):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, how],
            capture_output=True,
            text=True,
            check=True,
            env={k: v for k, v in os.environ.items() if k not in CAPACITIES},
        )
        grown[how] = int(done.stdout)
    if grown["as it is"] < 4096:
        pytest.skip("oneDNN compiles nothing for this processor")
    assert grown["bounded"] < grown["as it is"] / 3, grown
