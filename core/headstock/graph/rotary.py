"""Rotary position embedding: frequencies from the configuration, tabled once for all positions.

Shapes: L positions, C rotated features of a head, F = C / 2 frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.context import Context
from headstock.graph.module import Module

ORIGINAL = "original_max_position_embeddings"
Scaled = tuple[Tensor, float]
"""Frequencies in radians a position, float32 [F], and what multiplies cosines and sines."""


class Rotary(Module):
    """The table of cosines and sines that attention layers rotate by.

    Args:
        ctx: What to build with; the table ends at ``ctx.limits.max_length``.
        rotary_dim: C.
        config: In Hugging Face keys.
        is_interleaved: Whether neighbours are a pair, not halves.
        layer_kind: Whose parameters these are, where the configuration has them by kind of layer.

    Raises:
        UnsupportedError: The configuration scales frequencies in a way we do not know.
    """

    def __init__(
        self,
        ctx: Context,
        rotary_dim: int,
        config: Mapping[str, Any],
        *,
        is_interleaved: bool = False,
        layer_kind: str | None = None,
    ) -> None:
        self.is_interleaved = is_interleaved
        self.rotary_dim = rotary_dim
        length = ctx.limits.max_length
        frequencies_F, factor = scaled_frequencies(rotary_dim, config, length, layer_kind)
        angles_LF = torch.arange(length, dtype=torch.float32)[:, None] * frequencies_F
        table_LC = torch.cat((angles_LF.cos(), angles_LF.sin()), dim=-1) * factor
        self.cos_sin_LC = table_LC.to(ctx.device.torch_device)
        """Cosines, then sines. float32. [L, C]"""


def rotary_parameters(config: Mapping[str, Any], layer_kind: str | None = None) -> dict[str, Any]:
    """Return the rotary parameters, however old the configuration's way of giving them.

    ``rope_parameters`` holds everything since transformers 5; before, ``rope_theta`` stood alone
    and ``rope_scaling`` beside it, at first with ``type`` for ``rope_type``. Where they differ from
    layer to layer, ``rope_parameters`` has them by kind of layer.

    Args:
        config: In Hugging Face keys.
        layer_kind: Whose to take where they differ, such as ``sliding_attention``.

    Raises:
        UnsupportedError: They differ, and no kind is given, or another.
    """
    given = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    if isinstance(given.get(layer_kind or ""), Mapping):
        given = dict(given[layer_kind or ""])
    if any(isinstance(value, Mapping) for value in given.values()):
        raise UnsupportedError(
            "The configuration's rope_parameters differ from layer to layer.",
            remedy="Serve another model: this architecture has one table for all layers.",
        )
    kind = given.get("rope_type") or given.get("type") or "default"
    theta = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    # The length before scaling may stand beside the scaling, where it comes first.
    original = config.get(ORIGINAL) or given.get(ORIGINAL) or config.get("max_position_embeddings")
    return given | {"rope_type": str(kind), "rope_theta": float(theta), ORIGINAL: original}


def scaled_frequencies(
    size: int, config: Mapping[str, Any], max_length: int, layer_kind: str | None = None
) -> Scaled:
    """Return the frequencies of ``size`` rotated features.

    Raises:
        UnsupportedError: The scaling is of a type we do not know.
    """
    rope = rotary_parameters(config, layer_kind)
    kind = rope["rope_type"]
    if kind == "dynamic" and max_length <= config.get("max_position_embeddings", 0):
        kind = "default"
    if kind not in SCALINGS:
        why = (
            " Its angles change with a request's length, so cached keys would go stale."
            if kind == "dynamic"
            else ""
        )
        raise UnsupportedError(
            f"The configuration's rope_type is {kind!r}, which is not supported here.{why}",
            remedy=f"Known: {', '.join(SCALINGS)}. With dynamic, --max-model-len up to the model's"
            " max_position_embeddings will do.",
        )
    exponents_F = torch.arange(0, size, 2, dtype=torch.int64).to(torch.float32) / size
    plain_F = 1.0 / (rope["rope_theta"] ** exponents_F)
    try:
        return SCALINGS[kind](plain_F, rope, config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedError(
            f"The configuration's rotary parameters for {kind} are incomplete or malformed:"
            f" {error!r}.",
            remedy="Compare its rope_parameters (or rope_scaling) with the model's original.",
        ) from error


def sharpening(config: Mapping[str, Any]) -> float:
    """Return what the configuration multiplies the scale of q·k by beside the table's own factor.

    Source:
        DeepSeek-V3's configurations, ``mscale_all_dim``; ``yarn_apply_mscale`` of transformers.
    """
    rope = rotary_parameters(config)
    above = rope.get("mscale_all_dim")
    if rope["rope_type"] == "default" or not above:
        return 1.0
    factor = float(rope.get("factor") or 1.0)
    return (0.1 * float(above) * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0


def _default(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    return plain_F, 1.0


def _linear(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Squeeze all positions alike. Source: Chen et al. 2023, "Position Interpolation"."""
    return plain_F / float(rope["factor"]), 1.0


def _tabled(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Divide each frequency by its own factor, as GGUF files of Llama 3 have them."""
    return plain_F / torch.tensor(rope["factors"], dtype=torch.float32), 1.0


def _llama3(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Squeeze long waves, leave short ones, and blend between.

    Source:
        Grattafiori et al. 2024, "The Llama 3 Herd of Models"; Hugging Face transformers,
        ``_compute_llama3_parameters``, whose results these are.
    """
    factor, original = float(rope["factor"]), float(rope[ORIGINAL])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns_F = original * plain_F / (2 * math.pi)
    kept_F = ((turns_F - low) / (high - low)).clamp(0, 1)
    return plain_F * kept_F + plain_F / factor * (1 - kept_F), 1.0


def _yarn(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Squeeze features by how often they turn within the original length.

    Source:
        Peng et al. 2023, "YaRN", section 3.2; Hugging Face transformers,
        ``_compute_yarn_parameters``, whose options these are.
    """
    original = float(rope[ORIGINAL])
    factor = float(rope.get("factor") or config["max_position_embeddings"] / original)
    size, theta = 2 * plain_F.shape[0], rope["rope_theta"]

    def feature_with(turns: float) -> float:
        """Return which frequency turns this often within the original length."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = feature_with(rope.get("beta_fast") or 32)
    last = feature_with(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    span = last - first or 0.001
    squeezed_F = ((torch.arange(size // 2, dtype=torch.float32) - first) / span).clamp(0, 1)
    frequencies_F = plain_F / factor * squeezed_F + plain_F * (1 - squeezed_F)
    return frequencies_F, _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """Return what sharpens attention over more tokens, unless the configuration says."""
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)
    growth = math.log(factor) if factor > 1 else 0.0
    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    if above and below:
        return (0.1 * above * growth + 1) / (0.1 * below * growth + 1)
    return 0.1 * growth + 1


SCALINGS: dict[str, Callable[[Tensor, Mapping[str, Any], Mapping[str, Any]], Scaled]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "frequency_factors": _tabled,
}
