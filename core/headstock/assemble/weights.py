"""Other weights for a model that is served: other values in the places of its tensors."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from headstock.assemble.backend import Opened
from headstock.assemble.model_files import installed_formats
from headstock.assemble.serving_runner import Built
from headstock.checkpoint import ModelFiles, resolve
from headstock.config.exclusions import RANKS, UPDATES, WHOLE_STEPS, reason_of
from headstock.errors import CheckpointError, did_you_mean
from headstock.graph.build import Model
from headstock.graph.embedding import LMHead
from headstock.graph.kept import Kept, kept_of
from headstock.graph.loader import check_fits, expected_leaves, reloading
from headstock.graph.module import find_layers
from headstock.graph.source import is_equal

UNLIKE = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"})
"""Keys of a configuration that say nothing of what is computed."""
DUMMY = "The server was started with --load-format dummy."


class InPlaceWeights:
    """Puts the values of other checkpoints in the places of a model's weights.

    Nothing is allocated: graphs that were captured go on with the new values.

    Args:
        synchronize: Waits until the model's device has all that was sent to it.
        model: Its weights are loaded.
        config: Of its checkpoint.
        kept: How its checkpoint's tensors are kept, by name.
        open_files: Opens a checkpoint.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        model: Model,
        config: Mapping[str, Any],
        kept: Mapping[str, Kept],
        open_files: Callable[[str], ModelFiles],
    ) -> None:
        self._synchronize, self._model = synchronize, model
        self._config, self._kept = dict(config), dict(kept)
        self._open = open_files
        self._files: ModelFiles | None = None
        self._work: Generator[int] | None = None

    def begin(self, path: str) -> None:
        """Open the checkpoint at ``path``, and compare it with the model.

        Raises:
            HeadstockError: There is none, or it is of another model; nothing has changed.
        """
        if not Path(path).exists():
            raise CheckpointError(
                f"model_path is {path!r}, which does not exist on the server.",
                remedy="Name a folder or file there.",
            )
        files = self._open(path)
        self._check_config(files)
        files.rename(self._model.named)
        check_fits(self._model, files)
        self._check_kept(files)
        self._check_ties(files)
        self._files = files
        self._work = reloading(self._model, files.tensors())

    def advance(self, seconds: float) -> bool:
        """Load for so long; returns whether that was all. Should it raise, the model is lost."""
        assert self._work is not None, "nothing is being loaded"
        assert self._files is not None, "nothing is being loaded"
        until = time.monotonic() + seconds
        with torch.inference_mode():
            for _ in self._work:
                if time.monotonic() >= until:
                    return False
            self._synchronize()
        self._files.close()
        self._files = self._work = None
        gc.collect()
        return True

    def read(self, name: str, num_rows: int) -> tuple[list[int], bytes]:
        """Return the shape and the elements of the first rows of a weight, as float32.

        Raises:
            HeadstockError: The model has none of that name, or its layer cannot tell.
        """
        leaves = expected_leaves(self._model)
        if name not in leaves:
            raise CheckpointError(
                f"name is {name[:200]!r}; the model has no such weight."
                f"{did_you_mean(name, leaves)}",
                remedy="Take a name of the checkpoint's files.",
            )
        layer, leaf = leaves[name]
        with torch.inference_mode():
            values = layer.read(leaf.name, num_rows)
            values = values.to("cpu", torch.float32).contiguous()
        return list(values.shape), values.numpy().astype("<f4").tobytes()

    def _check_config(self, files: ModelFiles) -> None:
        own, other = self._config, files.config
        names = sorted(n for n in {*own, *other} - UNLIKE if own.get(n) != other.get(n))
        if names:
            name = names[0]
            raise CheckpointError(
                f"{files.path} is of another model: {name} is {other.get(name)!r} there and"
                f" {own.get(name)!r} here.",
                remedy="Load weights of the same configuration, or start a server on these.",
            )

    def _check_kept(self, files: ModelFiles) -> None:
        """Refuse tensors that the places have no room for: quantised ones in place of dense."""
        kept = kept_of(self._model, files.index)
        tied = self._tied_names()
        for name in sorted(self._kept.keys() ^ kept.keys()):
            if name not in tied:
                where = "has no" if name in self._kept else "has a"
                raise CheckpointError(
                    f"{files.path} {where} {name}, unlike what the server began with.",
                    remedy="Load a checkpoint with the same tensors.",
                )
        for name in self._kept.keys() & kept.keys():
            if kept[name] != self._kept[name]:
                raise CheckpointError(
                    f"{files.path} has {name} as {kept[name][1]}, and the server as"
                    f" {self._kept[name][1]}, or its groups differ.",
                    remedy="Load a checkpoint that is quantised in the same way.",
                )

    def _check_ties(self, files: ModelFiles) -> None:
        for own, shared in self._tied_names().items():
            first, second = files.index.get(own), files.index.get(shared)
            if first is not None and second is not None and not is_equal(first, second):
                raise CheckpointError(
                    f"{files.path} has a {own} of its own; the server uses {shared} for it.",
                    remedy="Start a server on these weights.",
                )

    def _tied_names(self) -> dict[str, str]:
        """Return the weights that are another layer's too: their names, and the other's."""
        layers = list(find_layers(self._model))
        names = {id(one): pre + one.leaves()[0].name for pre, one in layers if one.leaves()}
        return {
            names[id(layer)]: names[id(layer.tied)]
            for _, layer in layers
            if isinstance(layer, LMHead) and layer.tied is not None
        }


def changeable_weights(
    opened: Opened, built: Built, config: Mapping[str, Any]
) -> InPlaceWeights | str:
    """Return what changes the weights of a served model, or why they cannot change.

    Args:
        opened: The backend.
        built: The model, ready to serve, on this rank.
        config: Of its checkpoint.
    """
    loaded = built.loaded
    if loaded.ctx.tp.size > 1:
        return reason_of(UPDATES, RANKS)
    if built.is_taken:
        return reason_of(UPDATES, WHOLE_STEPS)
    if opened.settings.model.load_format == "dummy":
        return DUMMY
    disabled = opened.settings.device.disable_plugin
    return InPlaceWeights(
        opened.device.synchronize,
        loaded.model,
        config,
        loaded.kept,
        lambda path: _opened(path, disabled),
    )


def _opened(path: str, disabled: Collection[str]) -> ModelFiles:
    return resolve(path, formats=lambda: installed_formats(disabled))
