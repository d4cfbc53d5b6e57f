"""Whether a model would load here, and who would compute what, without reading a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headstock.assemble.backend import Opened, open_backend
from headstock.assemble.model import plan_model
from headstock.assemble.model_files import find_model
from headstock.assemble.plan import PlannedRanks
from headstock.assemble.task import find_task
from headstock.checkpoint.files import ModelFiles, Progress, StoredTensor
from headstock.config import EngineSettings, Loaded
from headstock.errors import HeadstockError
from headstock.graph.build import Model
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.linear import Linear
from headstock.graph.loader import (
    Mismatch,
    adopt_names,
    allocate_layer,
    compare,
    settle_ties,
)
from headstock.graph.module import allocation_order
from headstock.graph.moe import Experts
from headstock.ops.base import Op, Resolution, Spec
from headstock.ops.linear import linear
from headstock.ops.moe import experts
from headstock.plugins.models import ChosenModel
from headstock.plugins.resolved import describe_spec

KEEPS_WEIGHTS = (linear.name, experts.name)
"""Ops whose providers make room for weights when they are built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOp:
    """One op that the model needs.

    Attributes:
        op: Its name.
        spec: What is asked, as text.
        provider: Who computes it.
        passed_over: Who does not, each with the reason.
    """

    op: str
    spec: str
    provider: str
    passed_over: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCheck:
    """What would become of a model here.

    Attributes:
        name: Of the model.
        architectures: Of its configuration.
        architecture: The one that is served; "" where none is.
        dist: The distribution that brings its class.
        is_fallback: Whether that is transformers' own class.
        task: What it is served for: ``generate``, ``embed`` or ``classify``.
        device: What would serve it, and as what.
        dtype: Of activations.
        num_tensors: How many the files have.
        stored: Tensors by the layout that the files have them in.
        missing: Names of tensors that the class needs.
        unexpected: Names of tensors that it does not know.
        misshapen: Tensors of another shape, each with its shape and the expected one.
        left_out: Names of tensors that are not used: scales of the KV cache.
        ops: What computes it, in the order of first use.
        problem: Why it would not be served; "" where it would.
        remedy: What would help.
    """

    name: str
    architectures: tuple[str, ...]
    architecture: str = ""
    dist: str = ""
    is_fallback: bool = False
    task: str = ""
    device: str = ""
    dtype: str = ""
    num_tensors: int = 0
    stored: Mapping[str, int] = field(default_factory=dict[str, int])
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    ops: tuple[CheckedOp, ...] = ()
    problem: str = ""
    remedy: str = ""


class Nothing:
    """A provider of weights without room for any."""

    num_bytes = 0


class WeightlessResolver:
    """Chooses as the resolver that it is made from; what it chooses makes no room for weights.

    Args:
        resolver: Of the backend.
    """

    def __init__(self, resolver: Any) -> None:
        self._resolver = resolver

    def __getattr__(self, name: str) -> Any:
        """Return what the resolver has."""
        return getattr(self._resolver, name)

    def resolve(self, op: Op[..., Any], spec: Spec) -> Callable[..., Any]:
        """Choose for ``op``."""
        chosen = self._resolver.resolve(op, spec)
        return (lambda *_: Nothing()) if op.name in KEEPS_WEIGHTS else chosen


def check_model(loaded: Loaded[EngineSettings], progress: Progress | None = None) -> ModelCheck:
    """Build the model without weights on the backend that would serve it, and compare names.

    Args:
        loaded: Settings, and who set them.
        progress: Called with the progress of a download.

    Raises:
        HeadstockError: There is no such model or backend, or its files cannot be read.
    """
    wanted = loaded.settings.model
    is_dummy = wanted.load_format == "dummy"
    files = find_model(loaded.settings, progress=progress)
    opened = open_backend(loaded)
    try:
        return _checked(opened, files, is_dummy=is_dummy)
    finally:
        opened.device.close()
        files.close()


def _checked(opened: Opened, files: ModelFiles, *, is_dummy: bool) -> ModelCheck:
    architectures = tuple(files.config.get("architectures") or ())
    check = ModelCheck(
        name=files.name,
        architectures=architectures,
        device=f"{opened.chosen.name}: {opened.device.name}",
        num_tensors=len(files.index),
        stored=Counter(str(tensor.layout) for tensor in files.index.values()),
        left_out=files.left_out,
    )
    group = PlannedRanks(opened.settings.parallel.tp_size)
    opened = replace(opened, resolver=WeightlessResolver(opened.resolver))  # pyright: ignore[reportArgumentType]
    try:
        task = find_task(files, opened.settings.model, opened.architectures)
        check = _served_by(check, opened.architectures.choose([task.architecture]))
        check = replace(check, task=task.kind)
        planned = plan_model(opened, files, group=group)
        adopt_names(planned.model, files.index)
        check = replace(check, dtype=str(planned.ctx.dtype).removeprefix("torch."))
        mismatch = Mismatch() if is_dummy else compare(planned.model, files.index)
        if not (is_dummy or mismatch):
            settle_ties(planned.model, files.index)
        _choose_products(planned.model, files.index)
    except HeadstockError as error:
        ops = _ops(opened.resolver.resolutions)
        return replace(check, ops=ops, problem=error.problem, remedy=error.remedy)
    check = replace(check, ops=_ops(opened.resolver.resolutions))
    return _compared(check, mismatch) if mismatch else check


def _served_by(check: ModelCheck, chosen: ChosenModel) -> ModelCheck:
    return replace(
        check,
        architecture=chosen.architecture,
        dist=chosen.dist,
        is_fallback=chosen.is_fallback,
    )


def _compared(check: ModelCheck, mismatch: Mismatch) -> ModelCheck:
    return replace(
        check,
        missing=tuple(mismatch.missing),
        unexpected=tuple(mismatch.unexpected),
        misshapen=tuple(
            f"{name} is {list(has)}, not {list(expected)}"
            for name, has, expected in mismatch.misshapen
        ),
        problem="The tensors are not those that the class is made of.",
        remedy="Check that config.json belongs to these weights, and that all files are there.",
    )


def _choose_products(model: Model, index: Mapping[str, StoredTensor]) -> None:
    """Have layers choose who multiplies their weights, in the layouts that the files have."""
    for prefix, layer in allocation_order(model):
        if not isinstance(layer, Linear | Embedding | LMHead | Experts):
            continue
        allocate_layer(layer, prefix, index)


def _ops(resolutions: list[Resolution]) -> tuple[CheckedOp, ...]:
    """Return each distinct op once."""
    found = {
        (r.op, describe_spec(r.spec)): CheckedOp(
            op=r.op, spec=describe_spec(r.spec), provider=r.provider, passed_over=r.passed_over
        )
        for r in resolutions
    }
    return tuple(found.values())
