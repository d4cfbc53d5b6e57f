"""What a model will take, before a weight of it is read: for ``headstock plan``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from headstock.assemble.backend import Opened, open_backend
from headstock.assemble.model import LoadedModel, plan_model
from headstock.assemble.model_files import find_model
from headstock.assemble.serving_loop import describe_task
from headstock.checkpoint.files import ModelFiles, Progress
from headstock.config import EngineSettings, Loaded
from headstock.errors import CheckpointError, ConfigError
from headstock.graph.estimate import estimate_weight_bytes
from headstock.graph.loader import adopt_names, compare, expected_leaves, settle_ties
from headstock.ops.communication import SingleRank
from headstock.plugins.device import Memory
from headstock.quantization.plan import Role
from headstock.runner.groups import group_sizes, requests_at_once
from headstock.runner.memory import Measured, MemoryPlan, optional_bytes, plan_memory
from headstock.wire.steps import DRAFT_ROWS

SAMPLING_COPIES = 3
"""Rows of logits that sampling holds at once: the logits, and what filters and draws make."""
LAYER_COPIES = 2
"""Widest activations that are alive at once."""


class PlannedRanks(SingleRank):
    """The first of some ranks that are not started: layers are divided as among them."""

    def __init__(self, size: int) -> None:
        self.size = size


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What a model is and takes on each rank. Bytes where nothing else is said.

    Attributes:
        name: Of the model.
        architecture: Of its class.
        task: What it is served for, and what follows from that.
        device: What would serve it, and as what.
        dtype: Of activations.
        num_parameters: Numbers in its weights, over all ranks.
        num_layers: Layers that keep keys and values.
        num_ranks: Among how many the layers are divided.
        max_length: Longest request. Tokens.
        max_requests: Requests at once.
        step_tokens: Tokens of the largest step.
        page_size: Tokens of a page.
        total: What is free on the device now.
        allowed: What ``memory_fraction`` leaves of it.
        weights: Estimated from the checkpoint's index.
        workspace: Estimated; the start-up measures it.
        optional: Tables for penalties and biases, made when first used.
        token_bytes: Keys and values of a token.
        memory: The whole plan, or None when it does not fit.
        problem: Why it does not fit; "" when it does.
        remedy: What would help.
    """

    name: str
    architecture: str
    task: str
    device: str
    dtype: str
    num_parameters: int
    num_layers: int
    num_ranks: int
    max_length: int
    max_requests: int
    step_tokens: int
    page_size: int
    total: int
    allowed: int
    weights: int
    workspace: int
    optional: int
    token_bytes: int
    memory: MemoryPlan | None
    problem: str = ""
    remedy: str = ""

    @property
    def longest_at_once(self) -> int:
        """Requests of the greatest length that the cache holds together; 0 when it does not fit."""
        return self.at_once(self.max_length)

    def at_once(self, length: int) -> int:
        """Return how many requests of ``length`` tokens the cache holds together."""
        if self.memory is None:
            return 0
        return requests_at_once(self.memory.groups, length, self.step_tokens)


def make_plan(loaded: Loaded[EngineSettings], progress: Progress | None = None) -> ModelPlan:
    """Build the model without weights on the backend that would serve it, and add up.

    Args:
        loaded: Settings, and who set them.
        progress: Called with the progress of a download.

    Raises:
        HeadstockError: There is no such model or backend, or no provider computes what it asks.
    """
    wanted = loaded.settings.model
    is_dummy = wanted.load_format == "dummy"
    files = find_model(loaded.settings, progress=progress)
    opened = open_backend(loaded)
    try:
        group = PlannedRanks(opened.settings.parallel.tp_size)
        model = plan_model(opened, files, group=group)
        if not is_dummy:
            _check_names(model, files)
            settle_ties(model.model, files.index)
        return _added_up(opened, files, model, group)
    finally:
        opened.device.close()
        files.close()


def _check_names(model: LoadedModel, files: ModelFiles) -> None:
    """Refuse a checkpoint that loading would refuse."""
    adopt_names(model.model, files.index)
    mismatch = compare(model.model, files.index)
    if mismatch:
        raise CheckpointError(
            f"{files.path} does not fit {type(model.model).__name__}: {len(mismatch.missing)}"
            f" tensors are missing, {len(mismatch.unexpected)} unexpected,"
            f" {len(mismatch.misshapen)} of another shape.",
            remedy="Check that config.json belongs to these weights; `headstock serve` lists them.",
        )


def _added_up(
    opened: Opened, files: ModelFiles, model: LoadedModel, group: PlannedRanks
) -> ModelPlan:
    settings, options, ctx = opened.settings, model.options, model.ctx
    index = {} if settings.model.load_format == "dummy" else files.index
    before = opened.device.memory()
    is_host = opened.device.facts.shares_host_memory
    measured = Measured(
        before=before,
        weights=estimate_weight_bytes(model.model, index, ctx),
        buffers=0,
        workspace=_workspace(model, files),
        graphs=0,
        groups=group_sizes(
            ctx.attention_layers,
            ctx.groups,
            options.page_size,
            is_shared=opened.device.facts.has_strided_pages,
        ),
    )
    memory, problem, remedy = _fit(opened, model, measured, group)
    leaves = [leaf for _, leaf in expected_leaves(model.model).values()]
    sharing = group.size if is_host else 1
    return ModelPlan(
        name=files.name,
        architecture=type(model.model).__name__,
        task=describe_task(model),
        device=f"{opened.chosen.name}: {opened.device.name}",
        dtype=str(ctx.dtype).removeprefix("torch."),
        num_parameters=sum(math.prod(x.shape) for x in leaves if x.role is not Role.UNUSED),
        num_layers=len(ctx.attention_layers),
        num_ranks=group.size,
        max_length=options.max_length,
        max_requests=options.num_slots,
        step_tokens=options.max_step_tokens,
        page_size=options.page_size,
        total=before.free // sharing,
        allowed=int(options.memory_fraction * before.free) // sharing,
        weights=measured.weights,
        workspace=measured.workspace,
        optional=optional_bytes(options),
        token_bytes=sum(
            size.page_bytes // size.page_tokens
            for size in measured.groups.sizes
            if size.retention.kind == "full"
        ),
        memory=memory,
        problem=problem,
        remedy=remedy,
    )


def _fit(
    opened: Opened, model: LoadedModel, measured: Measured, group: PlannedRanks
) -> tuple[MemoryPlan | None, str, str]:
    """Return the memory plan, or why there is none and what would help."""
    before, options = measured.before, model.options
    if group.size > 1 and opened.device.facts.shares_host_memory:
        # Ranks on one host share its memory; no rank is there to ask how much each has.
        share = before.free // group.size
        measured = replace(measured, before=Memory(total=before.total, free=share, peak=0))
    try:
        return plan_memory(opened.device, measured, options, SingleRank()), "", ""
    except ConfigError as error:
        return None, error.problem, error.remedy


def _workspace(model: LoadedModel, files: ModelFiles) -> int:
    """Estimate what the largest step takes beside weights and pages.

    Logits of every position in float32, where any are drawn from, the histories that drafts come
    from, and the widest activations of every token.
    """
    config, sizes = files.config, model.sizes
    hidden = int(config.get("hidden_size") or 0)
    widest = max(hidden, 2 * int(config.get("intermediate_size") or 0) // model.ctx.tp.size)
    options = model.options
    draft_rows = min(sizes.max_rows, DRAFT_ROWS) if options.max_drafts else 0
    positions = max(sizes.max_rows, draft_rows * (options.max_drafts + 1))
    logits = SAMPLING_COPIES * positions * options.vocab_size * 4
    if not options.draws:
        logits = 0
    histories = 4 * (options.num_slots + 1) * options.max_length if options.max_drafts else 0
    activations = (LAYER_COPIES * widest + 4 * hidden) * model.ctx.dtype.itemsize
    return logits + histories + sizes.max_tokens * activations
