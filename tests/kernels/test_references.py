"""References against what they are the references of: plain formulas in float64, and each other."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headstock.ops import load_all_ops
from headstock.ops.base import REFERENCE, Implementation, Op, Requires
from headstock.ops.cases import norm as norm_cases
from headstock.ops.cases.base import Bench, dtype_name
from headstock.ops.cases.table import CASES, cases_of
from headstock.plugins.host import HostDevice
from headstock.testing.checks import judge

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WITH_CASES = [op for op in load_all_ops().values() if op.name in CASES]
BUILT = [op for op in WITH_CASES if op.is_built]


WITHOUT_CASES = {"model_step"}
"""A whole step: its providers are tried on models."""


def test_the_table_has_cases_for_every_op_and_for_nothing_else() -> None:
    ours = {name for name in load_all_ops() if "::" not in name}
    assert set(CASES) == ours - WITHOUT_CASES


def test_an_op_of_a_plugin_brings_its_own_cases() -> None:
    theirs = Op("theirs::op", lambda x: x, cases=norm_cases.rms_norm_cases)
    assert cases_of(theirs) is norm_cases.rms_norm_cases
    assert cases_of(Op("theirs::other", lambda x: x)) is None


def test_ops_load_no_cases() -> None:
    code = (
        "import sys; from headstock.ops import load_all_ops; load_all_ops()\n"
        "print([name for name in sys.modules if name.startswith('headstock.ops.cases')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", BUILT, ids=lambda op: op.name)
def test_built_references_equal_float64(op, dtype: torch.dtype, references) -> None:
    run = Implementation(
        op=op.name, provider=REFERENCE, run=op.reference, requires=Requires(features=op.features)
    )
    bench = Bench(resolver=references, dtype=dtype, page_sizes=(16, 1, 5))
    verdict = judge(op, run, [bench])
    assert verdict.num_checked > 20
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


@pytest.mark.parametrize("op", WITH_CASES, ids=lambda op: op.name)
def test_references_in_float32_equal_themselves_in_bfloat16(op, references) -> None:
    """Low precision may round, not compute something else: the same cases, cast."""
    bench = Bench(resolver=references, dtype=torch.bfloat16)
    rtol, atol = op.tolerance.of("bfloat16")
    for case in CASES[op.name](bench):
        if case.call is not None or case.check is not None:
            continue
        args = [a.float() if _is_float(a) else a for a in case.args]
        wanted = op.reference(*args, **case.kwargs)
        wanted = (wanted,) if isinstance(wanted, torch.Tensor) else wanted
        for got, exact in zip(case.outcome(op.reference), wanted, strict=True):
            real = slice(case.num_real)
            torch.testing.assert_close(
                got[real].float(), exact[real].float(), rtol=2 * rtol, atol=2 * atol
            )


@pytest.mark.parametrize("name", ["silu_and_mul", "rms_norm", "add_rms_norm"])
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    op = load_all_ops()[name]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 64, generator=generator)
    rest = {"silu_and_mul": (), "rms_norm": (torch.ones(64),)}.get(name)
    kwargs = {} if name == "silu_and_mul" else {"eps": 1e-5}

    def run(x: torch.Tensor) -> torch.Tensor:
        if rest is None:
            return op.reference(x, x.flip(1), torch.ones(64), **kwargs)[0]
        return op.reference(x, *rest, **kwargs)

    together = run(rows)
    alone = torch.cat([run(row[None]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_the_host_says_what_memory_there_is(host: HostDevice) -> None:
    memory = host.memory()
    assert 0 < memory.free <= memory.total
    assert memory.peak > 10_000_000


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
