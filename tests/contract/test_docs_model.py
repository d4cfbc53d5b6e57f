"""The code of the page does what the page says, and the example package is the page's text."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from headstock.errors import UnsupportedError
from headstock.graph.build import build_model
from headstock.graph.loader import load_random
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.plugins.host import HostDevice
from headstock.testing.checks import judge
from headstock.testing.oracle.case import ModelCase, prompt
from headstock.testing.oracle.claims import CLAIMS
from headstock.testing.oracle.sequences import Sequences, context

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "examples" / "model_package" / "headstock_example_model"


def block(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found, mark
    return found[1]


@cache
def names() -> dict[str, Any]:
    """What the page's blocks define, one after another, in a package of their own."""
    defined: dict[str, Any] = {"__name__": "page_package.model"}
    for mark in ("model: tiny", "op", "layer", "logits"):
        code = "from __future__ import annotations\n" + block(mark)
        exec(compile(code, f"adding-a-model.md, {mark}", "exec"), defined)
    return defined


def model_class() -> Any:
    return names()["TinyForCausalLM"]


def tiny() -> ModelCase:
    return ModelCase(
        name="tiny",
        model=model_class(),
        config=transformers.LlamaConfig,
        oracle=transformers.LlamaForCausalLM,
        refused={"hidden_act": "gelu"},
    )


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_family_of_the_page_has_the_logits_of_transformers(tmp_path: Path, claim: str) -> None:
    assert len(block("model: tiny").splitlines()) < 100
    CLAIMS[claim](tiny().save(tmp_path))


def test_the_family_of_the_page_refuses_what_it_does_not_compute() -> None:
    with pytest.raises(UnsupportedError, match="hidden_act = 'gelu'"):
        model_class()(context(), {"hidden_act": "gelu"})


@pytest.mark.parametrize(("file", "mark"), [("tiny.py", "model: tiny"), ("cases.py", "cases")])
def test_the_example_package_is_the_text_of_the_page(file: str, mark: str) -> None:
    assert (PACKAGE / file).read_text(encoding="utf-8").endswith("\n\n" + block(mark))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_of_the_page_has_cases_that_its_reference_passes(dtype: torch.dtype) -> None:
    op = names()["weigh_features"]
    assert op.name == "page_package::weigh_features"
    bench = Bench(resolver=Resolver(OpRegistry(), HostDevice(num_threads=1)), dtype=dtype)
    verdict = judge(op, OpRegistry().offered(op)[-1], [bench])
    assert (verdict.num_checked, verdict.findings) == (3, [])


def test_the_layer_of_the_page_weighs_features() -> None:
    layer = names()["FeatureWeights"](context(), 4, leaf="scale")
    layer._weight_D.copy_(torch.arange(4.0))
    assert layer(torch.ones(2, 4)).tolist() == [[0, 1, 2, 3]] * 2
    assert [leaf.name for leaf in layer.leaves()] == ["scale.weight"]


def test_the_logits_of_the_page_are_cooler(tmp_path: Path) -> None:
    config = tiny().save(tmp_path).config()
    made: list[torch.Tensor] = []
    for kind in (model_class(), names()["CoolForCausalLM"]):
        ctx = context()
        model = build_model(kind, ctx, config | {"logits_temperature": 4})
        with torch.no_grad():
            load_random(model, ctx)
            made.append(Sequences(model, ctx).step(a=prompt(5)))
    torch.testing.assert_close(made[1], made[0] / 4)
