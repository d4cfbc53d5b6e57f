"""Builds the model of a checkpoint on an opened device, and loads its weights."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from headstock.assemble.backend import Opened
from headstock.assemble.model_files import max_length
from headstock.assemble.progress import Report, meter
from headstock.assemble.task import Task, check_settings, find_task
from headstock.checkpoint import ModelFiles
from headstock.config import LoraSettings
from headstock.config.adapters import given_adapters
from headstock.errors import ConfigError
from headstock.graph.build import Model, build_model
from headstock.graph.context import Context, Limits
from headstock.graph.kept import Kept, kept_of
from headstock.graph.loader import load_random, load_weights
from headstock.graph.lora import AdapterSpace, StepAdapters
from headstock.graph.pooled import PooledDecoder
from headstock.lora import adapter_space
from headstock.ops.communication import Group, SingleRank
from headstock.ops.linear import DENSE
from headstock.plugins.models import ChosenModel, ModelRegistry
from headstock.runner.options import PaddedSizes, RunnerOptions, padded_sizes

FLOATS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
KV_DTYPES: Mapping[str, torch.dtype] = {
    **FLOATS,
    "int8": torch.int8,
    "fp8_e4m3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on the device, and how it is to be run.

    Attributes:
        model: The model.
        ctx: What it was built with.
        options: The runner's options.
        sizes: The same with padding.
        task: What it is served for.
        chosen: Whose class it is.
        kept: How its checkpoint's tensors are kept, by name; {} before they are loaded.
    """

    model: Model
    ctx: Context
    options: RunnerOptions
    sizes: PaddedSizes
    task: Task
    chosen: ChosenModel
    kept: Mapping[str, Kept] = field(default_factory=dict[str, Kept])


def plan_model(
    opened: Opened,
    files: ModelFiles,
    *,
    group: Group | None = None,
    registry: ModelRegistry | None = None,
) -> LoadedModel:
    """Build the model that ``files`` hold; its weights are not allocated yet.

    Args:
        opened: The backend.
        files: The checkpoint, or its configuration alone.
        group: The ranks that share every layer; just this one when not given.
        registry: Architectures; the installed ones when not given.

    Raises:
        CheckpointError: The configuration lacks something.
        UnsupportedError: No package has the architecture, or no provider computes what it asks.
    """
    settings = opened.settings
    # First of all: what the rest of the configuration means is the class's business.
    registry = registry or opened.architectures
    task = find_task(files, settings.model, registry)
    check_settings(task, settings)
    chosen = registry.choose([task.architecture])
    model_class = registry.load(task.architecture)
    getattr(model_class, "check", Model.check)(files.config)
    length = max_length(
        files,
        settings.model,
        getattr(model_class, "length_keys", Model.length_keys),
        getattr(model_class, "spare_length", Model.spare_length),
    )
    is_causal = task.is_causal and getattr(model_class, "is_causal", Model.is_causal)
    is_whole = not is_causal or _pools_all(task) or bool(task.of_tokens)
    options = _runner_options(opened, files, length, is_whole=is_whole)
    if task.is_converted:
        model_class = partial(
            PooledDecoder, decoder=model_class, is_classifier=task.kind == "classify"
        )
    sizes = padded_sizes(opened.device.graph_policy, options)
    limits = Limits(
        max_rows=sizes.max_rows,
        max_tokens=sizes.max_tokens,
        max_length=options.max_length,
        page_size=settings.cache.page_size,
    )
    ctx = _context(opened, files, task, limits, group or SingleRank())
    with torch.inference_mode():
        model = build_model(model_class, ctx, files.config)
    files.rename(model.named)
    opened.resolver.check_forced()
    options = replace(
        options,
        page_size=ctx.page_size,
        vocab_size=options.vocab_size * model.num_token_types,
        yields=(*model.yields, *model.token_yields),
        is_causal=model.takes_chunks,
    )
    return LoadedModel(model, ctx, options, sizes, task, chosen)


def _context(
    opened: Opened, files: ModelFiles, task: Task, limits: Limits, group: Group
) -> Context:
    """Return what layers are built with."""
    settings = opened.settings
    dtype = compute_dtype(settings.model.dtype, files.dtype, opened.device.default_dtype)
    is_narrow = is_quantised(opened, files)
    return Context(
        ops=opened.resolver,
        dtype=dtype,
        kv_dtype=kv_dtype(settings.cache.kv_dtype, dtype, is_quantised=is_narrow),
        limits=limits,
        tp=group,
        quantization=settings.model.quantization,
        pooling=task.pooling,
        is_causal=task.is_causal,
        adapters=_adapters(opened),
    )


def load_model(
    opened: Opened,
    files: ModelFiles,
    report: Report,
    *,
    group: Group | None = None,
    registry: ModelRegistry | None = None,
) -> LoadedModel:
    """Build the model that ``files`` hold and load its weights.

    Args:
        opened: The backend.
        files: The checkpoint.
        report: Called with the progress.
        group: The ranks that share every layer; just this one when not given.
        registry: Architectures; the installed ones when not given.

    Raises:
        CheckpointError: The files do not fit the architecture.
        UnsupportedError: No package has the architecture, or no provider computes what it asks.
    """
    planned = plan_model(opened, files, group=group, registry=registry)
    with torch.inference_mode():
        if opened.settings.model.load_format == "dummy":
            load_random(planned.model, planned.ctx, meter(report, "weights", "tensors"))
        else:
            load_weights(planned.model, files, planned.ctx, meter(report, "weights", "bytes"))
            kept = kept_of(planned.model, files.index)
            files.close()
            gc.collect()
            return replace(planned, kept=kept)
    return planned


def compute_dtype(wanted: str, own: str, preferred: torch.dtype | None) -> torch.dtype:
    """Return the dtype of activations: as set, else the device's choice, else the checkpoint's."""
    if wanted == "auto" and preferred is not None:
        return preferred
    return FLOATS[own if wanted == "auto" else wanted]


def kv_dtype(wanted: str, activations: torch.dtype, *, is_quantised: bool) -> torch.dtype:
    """Return the dtype of cached keys and values: as set, else what the weights are worth."""
    if wanted != "auto":
        return KV_DTYPES[wanted]
    is_halved = is_quantised and activations == torch.float32
    return torch.float16 if is_halved else activations


def is_quantised(opened: Opened, files: ModelFiles) -> bool:
    """Whether matrices are kept in a quantised layout, or are to be."""
    if opened.settings.model.quantization in ("int8", "int4"):
        return True
    return any(tensor.layout != DENSE for tensor in files.index.values())


def _adapters(opened: Opened) -> StepAdapters | None:
    """Return the room for LoRA adapters that the settings ask for; None: none."""
    space = wanted_space(opened.settings.lora)
    return None if space is None else StepAdapters(space, opened.resolver)


def _pools_all(task: Task) -> bool:
    """Whether vectors are made of more than the last token of each text."""
    return task.pooling is not None and task.pooling.kind != "last"


def _runner_options(
    opened: Opened, files: ModelFiles, length: int, *, is_whole: bool
) -> RunnerOptions:
    """Return the runner's options; a model that takes prompts whole has steps for the longest."""
    settings = opened.settings
    facts = opened.device.facts
    scheduler = settings.scheduler
    space = wanted_space(settings.lora)
    step_tokens = max(facts.default_step_tokens, length if is_whole else 0)
    return RunnerOptions(
        num_slots=scheduler.max_running_requests or facts.default_slots,
        max_step_tokens=scheduler.chunked_prefill_size or step_tokens,
        max_length=length,
        vocab_size=files.size("vocab_size"),
        page_size=settings.cache.page_size or 1,
        memory_fraction=settings.cache.memory_fraction,
        cache_tokens=settings.cache.cache_tokens,
        media_tokens=settings.media.encoder_tokens,
        num_adapters=0 if space is None else space.num_places,
        max_drafts=settings.speculation.max_drafts,
        overlap=scheduler.overlap,
        graphs=settings.device.graphs,
    )


def wanted_space(settings: LoraSettings) -> AdapterSpace | None:
    """Return the room for adapters that ``settings`` ask for; None: none.

    Raises:
        AdapterError: An adapter's configuration cannot be read.
        ConfigError: The settings contradict each other.
    """
    paths = list(given_adapters(settings).values())
    if settings.max_loras == 0 and paths:
        raise ConfigError(
            f"max_loras is 0, and lora names {len(paths)} adapters.",
            remedy="Drop --max-loras, or make room for one at least.",
        )
    space = adapter_space(
        paths, settings.max_loras, settings.max_lora_rank, settings.lora_target_modules
    )
    if space is None and (settings.max_lora_rank or settings.lora_target_modules):
        raise ConfigError(
            "max_lora_rank and lora_target_modules have no effect without adapters.",
            remedy="Set --max-loras, or drop them.",
        )
    if len(paths) > settings.max_loaded_loras:
        raise ConfigError(
            f"max_loaded_loras is {settings.max_loaded_loras}; lora names {len(paths)} adapters.",
            remedy="Raise --max-loaded-loras.",
        )
    return space
