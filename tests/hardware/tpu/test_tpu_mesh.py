"""Four virtual devices of torch-xla that compute each layer together, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch_xla", reason="needs torch-xla: make tpu-test", exc_type=ImportError)

from tests.hardware.tpu.conftest import SETTINGS, SMALL, prompts_of

NUM_TOKENS = 8
PROMPTS = prompts_of(5, 17, 40)
WIDE = SMALL | {"num_attention_heads": 8, "num_key_value_heads": 4}
RUN = """
import json, sys
from headstock.assemble.local import run_greedy
from headstock_tpu.xla import XlaRuntime
import torch_xla

spread = []
mark = XlaRuntime.spread

def marked(self, tensor, *, axis):
    mark(self, tensor, axis=axis)
    spread.append((axis, torch_xla._XLAC._get_xla_sharding_spec(tensor)))

XlaRuntime.spread = marked
given = json.loads(sys.argv[1])
ids = run_greedy(given["config"], given["prompts"], given["num_tokens"], **given["settings"])
print(json.dumps({"ids": ids, "spread": spread}))
"""


def test_four_devices_together_give_the_ids_of_the_reference(reference):
    on_mesh = {"backend": "tpu", "backend_option": ["pjrt=cpu", "mesh=4"]}
    given = {
        "config": WIDE,
        "prompts": PROMPTS,
        "num_tokens": NUM_TOKENS,
        "settings": SETTINGS | on_mesh,
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(given)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["ids"] == reference(WIDE, PROMPTS, NUM_TOKENS)
    products = [spec for axis, spec in shown["spread"] if axis == 0 and "devices=[4,1]" in spec]
    pages = [spec for axis, spec in shown["spread"] if axis == 2]
    assert len(products) == 4 * WIDE["num_hidden_layers"]  # 307 rows of logits do not divide by 4
    assert len(pages) >= WIDE["num_hidden_layers"]  # and those of the rehearsal
    assert all("devices=[1,1,4,1,1]" in spec for spec in pages)
