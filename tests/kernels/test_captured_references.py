"""Which references a captured step may hold: those that read nothing on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headstock.ops import load_all_ops
from headstock.ops.attention import StepBatch
from headstock.ops.base import Op, OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.plugins.captures import READS_VALUES

OPS = load_all_ops()
CASES = 12
"""Cases of an op that are tried: among them are rows of several tokens."""


class ReadsHostError(Exception):
    """A reference has read a value, or rows, on the host."""


class NoReads(TorchDispatchMode):
    """Stops at a call that brings a value to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS_VALUES:
            raise ReadsHostError(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


class CpuDevice:
    torch_device = torch.device("cpu")
    capabilities = frozenset[str]()
    num_threads = 1


def no_list(_: torch.Tensor) -> None:
    raise ReadsHostError("tolist")


def without_rows(batch: StepBatch) -> StepBatch:
    known = replace(batch, host_rows=[], groups=())
    known.groups = tuple(
        known if view is batch else replace(view, host_rows=[], groups=()) for view in batch.groups
    )
    return known


def as_captured(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run`` as a captured step calls it: the host knows no rows, and reads nothing."""

    def captured(*args: Any, **kwargs: Any) -> Any:
        known = [without_rows(arg) if isinstance(arg, StepBatch) else arg for arg in args]
        with pytest.MonkeyPatch.context() as patch, NoReads():
            patch.setattr(torch.Tensor, "tolist", no_list)
            try:
                return run(*known, **kwargs)
            except AssertionError as error:
                raise ReadsHostError(str(error)) from error

    return captured


class Captured:
    """A provider whose ``run``, and call, is that of a captured step."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._provider, name)
        return as_captured(found) if name == "run" else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return as_captured(self._provider)(*args, **kwargs)


def reads_host(op: Op[..., Any]) -> bool:
    def build(*args: Any, **kwargs: Any) -> Any:
        return Captured(op.reference(*args, **kwargs))

    assert op.cases is not None
    bench = Bench(resolver=Resolver(OpRegistry(), CpuDevice()), dtype=torch.float32)
    run = build if op.is_built else as_captured(op.reference)
    for case in islice(op.cases(bench), CASES):
        try:
            case.outcome(run)
        except ReadsHostError:
            return True
    return False


@pytest.mark.parametrize("name", sorted(name for name, op in OPS.items() if op.cases))
def test_an_op_says_whether_its_reference_reads_on_the_host(name: str) -> None:
    assert reads_host(OPS[name]) == OPS[name].reads_host
