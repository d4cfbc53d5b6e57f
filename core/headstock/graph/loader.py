"""Fills a model with the values of its checkpoint tensors, or with random ones.

Which tensors those are, where they go and which share a rank takes follow from the layers; what
is in the checkpoint is compared with that before a byte is read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headstock.checkpoint.cache_scales import WHY
from headstock.checkpoint.files import ModelFiles, Progress, StoredTensor
from headstock.checkpoint.mapping import MappedFile
from headstock.checkpoint.read_ahead import reading_ahead
from headstock.checkpoint.sentence import PREFIX
from headstock.errors import CheckpointError
from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.embedding import LMHead
from headstock.graph.linear import Linear
from headstock.graph.module import Layer, Leaf, allocation_order, find_layers
from headstock.graph.source import CheckpointSource, RandomSource, is_equal
from headstock.quantization.plan import Layout, Role

log = logging.getLogger(__name__)
BYTES_AT_ONCE = 1 << 28
"""Of a file, until the pages that were read are given back."""
SHOWN = 12
"""Tensor names that an error lists of each kind."""


@dataclass(slots=True)
class Mismatch:
    """How a checkpoint differs from what a model is made of; empty lists when it fits.

    Attributes:
        missing: Names that a layer needs.
        unexpected: Names that no layer declares.
        misshapen: Name, shape in the checkpoint, expected shape.
    """

    missing: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    )

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.missing or self.unexpected or self.misshapen)


def expected_leaves(model: Model) -> dict[str, tuple[Layer, Leaf]]:
    """Return every checkpoint tensor that ``model`` is made of, by full name."""
    return {
        prefix + leaf.name: (layer, leaf)
        for prefix, layer in find_layers(model)
        for leaf in layer.leaves()
    }


def compare(model: Model, index: Mapping[str, StoredTensor]) -> Mismatch:
    """Compare a model with a checkpoint's index. Reads no tensor.

    What vectors go through (``sentence.``) is not missed where no vectors are wanted.
    """
    expected = expected_leaves(model)
    skipped = [re.compile(pattern) for pattern in (*model.skip, rf"^{PREFIX}\.")]
    mismatch = Mismatch()
    for name, (_, leaf) in expected.items():
        if name not in index:
            if not leaf.is_optional:
                mismatch.missing.append(name)
        elif index[name].shape != leaf.shape:
            mismatch.misshapen.append((name, index[name].shape, leaf.shape))
    for name in index:
        if name not in expected and not any(pattern.search(name) for pattern in skipped):
            mismatch.unexpected.append(name)
    return mismatch


OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""Ends of names that old checkpoints give the scale and the shift of a norm."""


def adopt_names(model: Model, index: dict[str, StoredTensor]) -> None:
    """Give tensors the names that ``model`` has: of checkpoints without a head, and of old ones.

    The former lack the model's ``base_prefix``. Changes ``index``, and keeps its order.
    """
    expected = expected_leaves(model)
    if all(name in index for name in expected):
        return
    prefix = f"{model.base_prefix}."
    before = "" if any(name.startswith(prefix) for name in index) else prefix
    renamed: list[StoredTensor] = []
    for name, tensor in index.items():
        end = next((old for old in OLD_NAMES if name.endswith(old)), "")
        new = name.removesuffix(end) + OLD_NAMES.get(end, "")
        adopted = next((n for n in (name, new, before + name, before + new) if n in expected), name)
        renamed.append(replace(tensor, name=adopted))
    index.clear()
    index.update((tensor.name, tensor) for tensor in renamed)


def load_weights(
    model: Model, files: ModelFiles, ctx: Context, progress: Progress | None = None
) -> None:
    """Allocate the model's weights and stream the checkpoint into them.

    Args:
        model: As :func:`headstock.graph.build.build_model` returned it.
        files: The checkpoint.
        ctx: What the model was built with.
        progress: Called after each tensor with the bytes of the checkpoint that are done, and all.

    Raises:
        CheckpointError: Tensors are missing, unexpected or of other shapes; nothing is loaded.
        ConfigError: Quantised groups do not divide among the ranks.
    """
    check_fits(model, files)
    if files.left_out:
        log.warning(
            "Scales of the KV cache are left out, %s and %d more: %s. --kv-dtype fp8_e4m3 keeps the"
            " cache in 8 bits.",
            files.left_out[0],
            len(files.left_out) - 1,
            WHY,
        )
    settle_ties(model, files.index)
    allocate(model, files.index)
    share = (ctx.tp.rank, ctx.tp.size)
    reload_weights(model, files.tensors(), files.num_bytes, progress, share=share)


def check_fits(model: Model, files: ModelFiles) -> None:
    """Refuse a checkpoint whose tensors are not those of ``model``; gives them its names.

    Raises:
        CheckpointError: Tensors are missing, unexpected or of other shapes.
    """
    adopt_names(model, files.index)
    mismatch = compare(model, files.index)
    if mismatch:
        raise _as_error(mismatch, model, files)


def settle_ties(model: Model, index: Mapping[str, StoredTensor]) -> None:
    """Untie output layers of which the checkpoint has a weight unlike the embedding's.

    Reads both, if both are there.
    """
    names = {
        id(layer): prefix + leaf.name
        for prefix, layer in find_layers(model)
        for leaf in layer.leaves()
    }
    for _, layer in find_layers(model):
        if not isinstance(layer, LMHead) or layer.tied is None:
            continue
        own, shared = index.get(names[id(layer)]), index.get(names[id(layer.tied)])
        if own is not None and shared is not None and not is_equal(own, shared):
            log.warning(
                "The configuration ties %s to %s, and the checkpoint has both, with different"
                " values: each is used as the file has it.",
                own.name,
                shared.name,
            )
            layer.untie()


def reload_weights(
    model: Model,
    tensors: Iterable[StoredTensor],
    total: int,
    progress: Progress | None = None,
    *,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Stream ``tensors`` into weights that are allocated, at their fixed addresses.

    Of the files this process has one in memory at a time, and of that about
    :data:`BYTES_AT_ONCE` at most. What comes next is read ahead by threads, into the page cache.

    Args:
        model: Its weights are allocated.
        tensors: In the order of the files.
        total: Bytes of all of them.
        progress: Called with the bytes that are done, and all.
        share: This rank, and how many there are: each reads its share ahead.
    """
    for done in reloading(model, tensors, share=share):
        if progress is not None:
            progress(done, total)


def reloading(
    model: Model, tensors: Iterable[StoredTensor], *, share: tuple[int, int] = (0, 1)
) -> Generator[int]:
    """Do as :func:`reload_weights`, a tensor each time that it is advanced.

    Yields:
        Bytes of the checkpoint that are done.
    """
    expected = expected_leaves(model)
    tensors = list(tensors)
    done, kept, of_file, file = 0, 0, 0, None
    with reading_ahead(_files_of(tensors), share) as ahead:
        for tensor in tensors:
            if file is not None and (file is not tensor.file or kept >= BYTES_AT_ONCE):
                file.release()
                kept = 0
            of_file = of_file if file is tensor.file else 0
            file = tensor.file
            if ahead is not None and file is not None:
                ahead.reached(file, of_file)
            if tensor.name in expected:
                layer, leaf = expected[tensor.name]
                layer.load(leaf.name, CheckpointSource(tensor, leaf.role))
            done += tensor.num_bytes
            kept += tensor.num_bytes
            of_file += tensor.num_bytes
            yield done
    if file is not None:
        file.release()


def _files_of(tensors: Sequence[StoredTensor]) -> list[MappedFile]:
    """Return the files that have tensors, in the order in which those are loaded."""
    found = {id(t.file): t.file for t in tensors if t.file is not None}
    return list(found.values())


def allocate(model: Model, index: Mapping[str, StoredTensor]) -> None:
    """Make room for the weights, in the layouts that ``index`` has; dense where it has none."""
    for prefix, layer in allocation_order(model):
        allocate_layer(layer, prefix, index)


def allocate_layer(layer: Layer, prefix: str, index: Mapping[str, StoredTensor]) -> None:
    """Make room for one layer's weights.

    Args:
        layer: Not allocated yet.
        prefix: Of its leaves' names.
        index: Of the checkpoint.
    """
    found = {leaf.name: index.get(prefix + leaf.name) for leaf in layer.leaves()}
    if isinstance(layer, Linear):
        layer.offer({n: t.ordered for n, t in found.items() if t is not None and t.ordered})
    layer.allocate(
        {
            name: Layout() if stored is None else Layout(stored.layout, stored.group_size)
            for name, stored in found.items()
        }
    )


def load_random(model: Model, ctx: Context, progress: Progress | None = None) -> None:
    """Allocate the model's weights and fill them with random values: ``--load-format dummy``.

    Values are drawn on the device, and are the same on every start.

    Args:
        model: As :func:`headstock.graph.build.build_model` returned it.
        ctx: What the model was built with.
        progress: Called with the tensors that are done, and all.
    """
    allocate(model, {})
    expected = {n: e for n, e in expected_leaves(model).items() if e[1].role is not Role.UNUSED}
    for done, (name, (layer, leaf)) in enumerate(expected.items(), start=1):
        device = ctx.device.torch_device
        layer.load(leaf.name, RandomSource(name, leaf.shape, leaf.role, device, ctx.dtype))
        if progress is not None:
            progress(done, len(expected))


def weight_bytes(model: Model) -> int:
    """Return the bytes of all weights on this rank, once allocated."""
    return sum(layer.num_bytes for _, layer in find_layers(model))


def _as_error(mismatch: Mismatch, model: Model, files: ModelFiles) -> CheckpointError:
    misshapen = [
        f"{name} is {list(has)}, not {list(expected)}" for name, has, expected in mismatch.misshapen
    ]
    kinds = (
        ("missing", mismatch.missing),
        ("unexpected", mismatch.unexpected),
        ("of another shape", misshapen),
    )
    lists = "; ".join(f"{len(names)} {what}: {_shown(names)}" for what, names in kinds if names)
    return CheckpointError(
        f"{files.path} does not fit {type(model).__name__}. Tensors {lists}.",
        remedy="Check that config.json belongs to these weights, and that all files are there.",
    )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
