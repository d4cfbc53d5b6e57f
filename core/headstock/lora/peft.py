"""Adapters as PEFT saves them: ``adapter_config.json`` and ``adapter_model.safetensors``.

Files come from anywhere: sizes are bounded, and whatever would change the answer is honoured or
refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from headstock.checkpoint.bounded import check_regular, read_bounded
from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.safetensors_file import read_safetensors
from headstock.errors import AdapterError, CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 512
MAX_PATTERNS = 4096
PREFIX = "base_model.model."
"""Before every module's name."""
_NAME = re.compile(r"\^?[A-Za-z0-9_.\\]+\$?")
"""A pattern that is a module's name or the end of one; dots may be escaped."""

_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "kasa_config", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
})  # fmt: skip
"""Say how an adapter was trained or which modules it has, which its tensors tell as well."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract the adapter from the base model's weights."""


class AdapterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What counts of an adapter's configuration.

    Attributes:
        r: Rank where ``rank_pattern`` says nothing else.
        lora_alpha: Scale times the rank, likewise.
        use_rslora: Whether scales are divided by the rank's square root instead.
        rank_pattern: Ranks by the end of a module's name.
        alpha_pattern: Likewise.
        target_modules: Modules that have matrices: their last names, or a regular expression.
    """

    r: Annotated[int, msgspec.Meta(ge=1, le=MAX_RANK)] = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, Annotated[int, msgspec.Meta(ge=1, le=MAX_RANK)]] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: list[str] | str | None = None

    @property
    def max_rank(self) -> int:
        """The largest rank of any module."""
        return max((self.r, *self.rank_pattern.values()))

    def scale(self, module: str, rank: int) -> float:
        """Return what ``module``'s addition is multiplied by."""
        alpha = _pattern_value(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        """Return the rank that ``module`` is said to have."""
        return int(_pattern_value(self.rank_pattern, module, self.r))


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """An adapter's matrices of one module.

    Attributes:
        down: [rank, input features]
        up: [output features, rank]
        scale: Multiplies the addition.
    """

    down: StoredTensor
    up: StoredTensor
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter whose files are whole.

    Attributes:
        path: Of the folder.
        settings: Its configuration.
        modules: Its matrices by the module's name in the model.
    """

    path: Path
    settings: AdapterSettings
    modules: Mapping[str, AdaptedModule]


def read_settings(path: Path) -> AdapterSettings:
    """Return the configuration of the adapter in the folder ``path``.

    Raises:
        AdapterError: It is missing or damaged, or asks for what is not computed.
    """
    try:
        data = read_bounded(path / CONFIG, MAX_CONFIG_BYTES)
        found = msgspec.json.decode(data, type=dict[str, Any])
        settings = msgspec.convert(found, AdapterSettings, strict=True)
    except FileNotFoundError as error:
        raise _missing(path, CONFIG) from error
    except CheckpointError as error:
        raise AdapterError(error.problem, remedy=error.remedy) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AdapterError(
            f"{path / CONFIG} is not an adapter's configuration: {error}.",
            remedy="Save the adapter with PEFT's save_pretrained.",
        ) from error
    _refuse(path, found)
    _check(path, settings)
    return settings


def open_adapter(path: Path) -> AdapterFiles:
    """Return the adapter in the folder ``path``; its matrices are read when asked for.

    Raises:
        AdapterError: It is incomplete or damaged, or has what is not computed.
    """
    settings = read_settings(path)
    try:
        check_regular(path / WEIGHTS)
        tensors = {tensor.name: tensor for tensor in read_safetensors(path / WEIGHTS)}
    except FileNotFoundError as error:
        raise _missing(path, WEIGHTS) from error
    except CheckpointError as error:
        raise AdapterError(error.problem, remedy=error.remedy) from error
    downs, ups = _sorted(path, tensors)
    if downs.keys() != ups.keys():
        alone = sorted(downs.keys() ^ ups.keys())[0]
        raise _wrong(path, f"{alone} has one matrix of two")
    if not downs:
        raise _wrong(path, "there is no matrix in it")
    modules = {name: _module(path, settings, name, downs[name], ups[name]) for name in downs}
    return AdapterFiles(path, settings, modules)


def _refuse(path: Path, found: Mapping[str, Any]) -> None:
    """Refuse what would change the answer and is not computed; name it."""
    kind = found.get("peft_type")
    if kind != "LORA":
        raise _not_computed(path, f"peft_type {kind!r}", "LORA is")
    if found.get("bias", "none") != "none":
        raise _not_computed(path, f"bias {found['bias']!r}", "'none' is")
    start = found.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _not_computed(
            path,
            f"init_lora_weights {start!r}, which belongs to changed base weights,",
            "save the adapter with path_initial_model_for_weight_conversion, then it",
        )
    known = {*AdapterSettings.__struct_fields__, *_HARMLESS}
    known |= {"peft_type", "bias", "init_lora_weights"}
    for name, value in found.items():
        if value and name not in known:
            raise _not_computed(path, name, "an adapter without it is")


def _check(path: Path, settings: AdapterSettings) -> None:
    for name in ("rank_pattern", "alpha_pattern"):
        patterns: Mapping[str, float] = getattr(settings, name)
        if len(patterns) > MAX_PATTERNS:
            raise _wrong(path, f"{name} has {len(patterns)} entries; {MAX_PATTERNS} may be")
        for pattern in patterns:
            if not _NAME.fullmatch(pattern):
                raise _not_computed(
                    path, f"{name} {pattern[:80]!r}", "the name of a module, or the end of one, is"
                )
    for alpha in (settings.lora_alpha, *settings.alpha_pattern.values()):
        if not math.isfinite(alpha):
            raise _wrong(path, f"an alpha is {alpha}")


def _pattern_value(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return what the first pattern says that is ``module``, or the end of it."""
    for pattern, value in patterns.items():
        name = pattern.replace("\\.", ".").strip("^$")
        is_whole = pattern.startswith("^")
        if module == name or (not is_whole and module.endswith(f".{name}")):
            return value
    return default


def _sorted(
    path: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Return the matrices to the rank and from it, by the module's name."""
    found: tuple[dict[str, StoredTensor], dict[str, StoredTensor]] = ({}, {})
    for name, tensor in tensors.items():
        module, _, kind = name.removeprefix(PREFIX).rpartition(".lora_")
        if name.startswith(PREFIX) and module and kind in ("A.weight", "B.weight"):
            found[kind == "B.weight"][module] = tensor
        elif "lora_embedding_" in name:
            raise _not_computed(path, f"{name}, of an embedding,", "an adapter of matrices is")
        elif "lora_magnitude_vector" in name:
            raise _not_computed(path, f"{name}, of DoRA,", "an adapter without it is")
        else:
            raise _not_computed(
                path, f"{name}, which is not a matrix of low rank,", "an adapter without it is"
            )
    return found


def _module(
    path: Path, settings: AdapterSettings, name: str, down: StoredTensor, up: StoredTensor
) -> AdaptedModule:
    for tensor in (down, up):
        if len(tensor.shape) != 2 or not tensor.dtype.startswith(("float", "bfloat")):
            raise _wrong(path, f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, no matrix")
    rank = down.shape[0]
    if not 1 <= rank <= MAX_RANK or rank != up.shape[1]:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise _wrong(path, f"the matrices of {name} are {shapes}, of ranks that do not fit")
    if rank != settings.rank(name):
        raise _wrong(path, f"{name} has rank {rank}; {CONFIG} says {settings.rank(name)}")
    return AdaptedModule(down, up, settings.scale(name, rank))


def _missing(path: Path, name: str) -> AdapterError:
    return AdapterError(
        f"{path} has no {name}.", remedy="Give the folder that PEFT's save_pretrained wrote."
    )


def _wrong(path: Path, why: str) -> AdapterError:
    return AdapterError(
        f"The adapter in {path} cannot be used: {why}.", remedy="Save it again with PEFT."
    )


def _not_computed(path: Path, what: str, instead: str) -> AdapterError:
    return AdapterError(
        f"The adapter in {path} has {what} which this version does not compute.",
        remedy=f"{instead[0].upper()}{instead[1:]} computed.",
    )
