"""The model of the page has the logits of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from headstock.errors import UnsupportedError
from tests.models import harness
from tests.models.conftest import SIZES, randomize

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-model.md"


def model_class() -> Any:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"<!-- model: tiny -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found
    assert len(found[1].splitlines()) < 100
    names: dict[str, Any] = {"__name__": "tiny"}
    exec(compile("from __future__ import annotations\n" + found[1], str(PAGE), "exec"), names)
    return names["TinyForCausalLM"]


def test_the_family_of_the_page_has_the_logits_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(harness.CLASSES, "LlamaForCausalLM", model_class())
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES)
    oracle = transformers.LlamaForCausalLM(config).eval()
    randomize(oracle)
    oracle.save_pretrained(tmp_path)
    ids = [5, 17, 3, 90, 41, 2, 2, 77]
    with torch.no_grad():
        wanted = oracle(torch.tensor([ids])).logits[0]
    got = harness.load(tmp_path).step(a=ids)
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_the_family_of_the_page_refuses_what_it_does_not_compute() -> None:
    with pytest.raises(UnsupportedError, match="hidden_act = 'gelu'"):
        model_class()(harness.context(), {"hidden_act": "gelu"})
