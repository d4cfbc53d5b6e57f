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


class AngleTable(Module):
    """Cosines and sines that attention layers rotate by, for all positions.

    Args:
        ctx: What to build with.
        table_LC: Cosines, then sines. float32. [L, C]
        is_interleaved: Whether neighbours are a pair, not halves.
        query_scale_L: What multiplies queries beside the scale of q·k; None: nothing. float32. [L]
    """

    def __init__(
        self,
        ctx: Context,
        table_LC: Tensor,
        *,
        is_interleaved: bool = False,
        query_scale_L: Tensor | None = None,
    ) -> None:
        where = ctx.device.torch_device
        self.is_interleaved = is_interleaved
        self.rotary_dim = table_LC.shape[-1]
        self.cos_sin_LC = table_LC.to(where)
        """Cosines, then sines. float32. [L, C]"""
        self.query_scale_L = None if query_scale_L is None else query_scale_L.to(where)
        """What multiplies queries beside the scale of q·k; None: nothing. float32. [L]"""


class Rotary(AngleTable):
    """The table that a configuration describes.

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
        length = ctx.limits.max_length
        frequencies_F, factor = scaled_frequencies(rotary_dim, config, length, layer_kind)
        angles_LF = torch.arange(length, dtype=torch.float32)[:, None] * frequencies_F
        super().__init__(
            ctx,
            torch.cat((angles_LF.cos(), angles_LF.sin()), dim=-1) * factor,
            is_interleaved=is_interleaved,
            query_scale_L=query_scale(length, rotary_parameters(config, layer_kind)),
        )


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
    theta = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    if isinstance(theta, list) or any(isinstance(value, Mapping) for value in given.values()):
        raise UnsupportedError(
            "The configuration's rotary parameters differ from layer to layer.",
            remedy="Serve another model: this architecture has one table for all layers.",
        )
    kind = given.get("rope_type") or given.get("type") or "default"
    # The length before scaling may stand beside the scaling, where it comes first.
    original = config.get(ORIGINAL) or given.get(ORIGINAL) or config.get("max_position_embeddings")
    return given | {"rope_type": str(kind), "rope_theta": float(theta), ORIGINAL: original}


def rotary_size(
    config: Mapping[str, Any], head_dim: int, *, share: float = 1.0, layer_kind: str | None = None
) -> int:
    """Return how many features of a head are rotated: C.

    Args:
        config: In Hugging Face keys, of which ``rotary_dim`` and ``partial_rotary_factor`` count.
        head_dim: Features of a head.
        share: How many of them where the configuration does not say.
        layer_kind: As in :func:`rotary_parameters`.
    """
    if config.get("rotary_dim"):
        return int(config["rotary_dim"])
    key = "partial_rotary_factor"
    given = rotary_parameters(config, layer_kind).get(key) or config.get(key) or share
    return int(head_dim * given)


def scaled_frequencies(
    size: int, config: Mapping[str, Any], max_length: int, layer_kind: str | None = None
) -> Scaled:
    """Return the frequencies of ``size`` rotated features.

    Raises:
        UnsupportedError: The scaling is of a type we do not know.
    """
    rope = rotary_parameters(config, layer_kind) | {"max_length": max_length}
    kind = rope["rope_type"]
    if kind == "dynamic" and rope.get("alpha"):
        kind = "ntk-alpha"  # which Hunyuan's configurations call dynamic, though nothing changes
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


def query_scale(length: int, rope: Mapping[str, Any]) -> Tensor | None:
    """Return what multiplies queries at each of ``length`` positions, where parameters say so.

    Source:
        ``llama_4_scaling_beta`` of Ministral 3's configurations; ``get_llama_4_attn_scale`` of
        Hugging Face transformers.
    """
    beta = rope.get("llama_4_scaling_beta")
    if not beta:
        return None
    whole_L = (torch.arange(length) / float(rope[ORIGINAL])).floor()
    return 1 + float(beta) * torch.log(1 + whole_L)


def _default(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    return plain_F, 1.0


def _linear(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Squeeze all positions alike. Source: Chen et al. 2023, "Position Interpolation"."""
    return plain_F / float(rope["factor"]), 1.0


def _ntk_alpha(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Stretch the base, whatever a request's length.

    Source:
        ``compute_ntk_alpha_rope_parameters`` of Hugging Face transformers.
    """
    size = 2 * plain_F.shape[0]
    exponents_F = torch.arange(0, size, 2, dtype=torch.float32) / size
    return plain_F / float(rope["alpha"]) ** (size / (size - 2) * exponents_F), 1.0


def _tabled(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Divide each frequency by its own factor, as GGUF files of Llama 3 have them."""
    return plain_F / torch.tensor(rope["factors"], dtype=torch.float32), 1.0


def _proportional(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Turn the first frequencies of a whole head, and leave the others where they are.

    Source:
        Gemma 4; ``_compute_proportional_rope_parameters`` of Hugging Face transformers.
    """
    size = 2 * plain_F.shape[0]
    num_turned = int(float(rope.get("partial_rotary_factor", 1.0)) * size // 2)
    is_turned_F = torch.arange(plain_F.shape[0]) < num_turned
    return plain_F * is_turned_F / float(rope.get("factor") or 1.0), 1.0


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


def _longrope(plain_F: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Scaled:
    """Divide each frequency by a factor of its own: of two lists that for the longest request.

    Which list it is may not change with a request's length: cached keys would go stale.

    Source:
        Ding et al. 2024, "LongRoPE"; Hugging Face transformers, ``_compute_longrope_parameters``.
    """
    original = float(rope[ORIGINAL])
    is_long = rope["max_length"] > original
    factors_F = torch.tensor(rope["long_factor" if is_long else "short_factor"])
    growth = rope.get("factor") or config["max_position_embeddings"] / original
    sharper = 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))
    given = rope.get("attention_factor")
    return plain_F / factors_F, sharper if given is None else float(given)


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
    "ntk-alpha": _ntk_alpha,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "frequency_factors": _tabled,
    "proportional": _proportional,
}
