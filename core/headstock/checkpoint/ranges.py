"""Ranges of a configuration's numbers: what no model has is a fault of the file, found at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from headstock.errors import CheckpointError

_SIZE = (1, 2**20)
INTEGERS: Mapping[str, tuple[int, int]] = {
    "vocab_size": (1, 2**24),
    "hidden_size": _SIZE,
    "intermediate_size": (1, 2**24),
    "moe_intermediate_size": _SIZE,
    "shared_expert_intermediate_size": (0, 2**24),
    "num_hidden_layers": (1, 4096),
    "num_attention_heads": (1, 16384),
    "num_key_value_heads": (1, 16384),
    "head_dim": (1, 65536),
    "num_local_experts": (0, 65536),
    "num_experts": (0, 65536),
    "n_routed_experts": (0, 65536),
    "num_experts_per_tok": (0, 65536),
    "max_position_embeddings": (1, 2**31 - 1),
    "sliding_window": (0, 2**31 - 1),
}
"""Least and largest value of each key."""
NUMBERS: Mapping[str, tuple[float, float]] = {
    "rms_norm_eps": (0.0, 1.0),
    "layer_norm_eps": (0.0, 1.0),
    "rope_theta": (1e-3, 1e15),
}
"""Likewise; the least value itself is refused."""
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DTYPES = frozenset({"auto", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn"})
_BY_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "rope_theta")
"""Keys that may hold a list, of one number a layer."""
_NESTED = ("text_config", "llm_config", "language_config")


def check_ranges(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration with a number that no model has.

    Args:
        path: Its file, for messages.
        config: In Hugging Face keys; keys that are absent or null are left to who reads them.

    Raises:
        CheckpointError: Naming file, key, value and what is allowed.
    """
    value: Any
    for key, (least, most) in INTEGERS.items():
        value = config.get(key)
        each: list[Any] = [value]
        if isinstance(value, list) and value and key in _BY_LAYER:
            each = cast("list[Any]", value)
        if value is not None and not all(_is_int(v) and least <= v <= most for v in each):
            raise _wrong(path, key, each, f"an integer from {least} to {most}")
    for key, (low, most) in NUMBERS.items():
        value = config.get(key)
        each = [value]
        if isinstance(value, list) and value and key in _BY_LAYER:
            each = cast("list[Any]", value)
        if value is not None and not all(_is_number(v) and low < v <= most for v in each):
            raise _wrong(path, key, each, f"a number over {low:g}, up to {most:g}")
    for key in IDS:
        check_ids(path, key, config.get(key))
    for key in ("torch_dtype", "dtype"):
        value = config.get(key)
        if value is not None and str(value).removeprefix("torch.") not in DTYPES:
            raise _wrong(path, key, value, f"one of {', '.join(sorted(DTYPES))}")
    names = config.get("architectures")
    if names is not None and not _are_names(names):
        raise _wrong(path, "architectures", names, "a list of names")
    for key in ("rope_scaling", "rope_parameters", *_NESTED):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise _wrong(path, key, value, "an object")
        if key in _NESTED and value is not None:
            check_ranges(path, cast("dict[str, Any]", value))


def check_ids(path: Path, key: str, value: object) -> None:
    """Refuse what is neither null, a token id, nor a list of them.

    Some models write -1 for none.

    Raises:
        CheckpointError: Naming file, key, value and what is allowed.
    """
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    most = INTEGERS["vocab_size"][1]
    is_list = isinstance(value, list)
    for item in values:
        if item is None and not is_list:
            continue
        if not (_is_int(item) and -1 <= cast("int", item) < most):
            raise _wrong(path, key, values, f"a token id below {most}, or a list of them")


def check_generation(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a generation configuration with values that no sampler takes.

    Raises:
        CheckpointError: Naming file, key, value and what is allowed.
    """
    for key in IDS:
        check_ids(path, key, config.get(key))
    for key in ("max_new_tokens", "max_length", "top_k"):
        value = config.get(key)
        if value is not None and not (_is_int(value) and -1 <= value < 2**31):
            raise _wrong(path, key, value, "an integer from -1 to 2147483647")
    for key in ("temperature", "top_p", "min_p", "repetition_penalty"):
        value = config.get(key)
        if value is not None and not (_is_number(value) and 0 <= value <= 1e6):
            raise _wrong(path, key, value, "a number from 0 to 1000000")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(cast("float", value))


def _are_names(value: object) -> bool:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return bool(items) and all(isinstance(item, str) for item in items)


def _wrong(path: Path, key: str, value: object, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has {key} = {str(value)[:64]!s}; allowed is {allowed}.",
        remedy="Compare it with the model's original.",
    )
