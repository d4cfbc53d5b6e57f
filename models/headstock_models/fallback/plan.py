"""How ranks share a class of transformers: by the plan that its configuration declares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from headstock.errors import ConfigError
from headstock.graph.linear import Part
from headstock.ops.moe import Matrix
from headstock_models.fallback.attention import AttentionCall

MIXTRAL_NAMES: Mapping[Matrix, str] = {"gate": "w1", "up": "w3", "down": "w2"}
OTHER = ("replicated_with_grad_allreduce", "embedding_rowwise")
"""Styles of what every rank has whole, and of embeddings, which are divided anyway."""


QUERIES = ("q_proj", "q_b_proj", "query_key_value", "qkv_proj", "c_attn")
"""What products are called that queries come from."""


class Plan:
    """Says of each product which side ranks divide.

    Args:
        config: Of the model; its ``base_model_tp_plan`` counts where there are several ranks.
        prefix: Of the decoder's modules.
        calls: How attention is called.
        num_ranks: How many ranks there are.

    Raises:
        ConfigError: There are several ranks, and the plan is missing or of a kind that is not
            followed.
    """

    def __init__(
        self, config: Any, prefix: str, calls: Sequence[AttentionCall], num_ranks: int
    ) -> None:
        given: Mapping[str, str] = getattr(config, "base_model_tp_plan", None) or {}
        self._is_divided = num_ranks > 1
        self._styles = {re.compile(_as_pattern(f"{prefix}.{p}")): s for p, s in given.items()}
        self._calls = {call.path: call for call in calls}
        self.expert_names = _expert_names(config)
        if self._is_divided:
            _check(given, num_ranks)

    def divides(self, path: str) -> bool:
        """Whether ranks share the heads of the attention module at ``path``."""
        names = (f"{path}.{leaf}" for leaf in QUERIES)
        return self._is_divided and any(self._style(name) == "colwise" for name in names)

    def pairs(self, path: str, into: Sequence[str], out: str) -> bool:
        """Whether ranks share what lies between the products ``into`` and ``out`` of a module."""
        if not self._is_divided:
            return True
        styles = [self._style(f"{path}.{name}") for name in (*into, out)]
        return styles == ["colwise"] * len(into) + ["rowwise"]

    def _style(self, path: str) -> str | None:
        return next((s for p, s in self._styles.items() if p.fullmatch(path)), None)

    def of(
        self, path: str, in_features: int, out_features: int
    ) -> tuple[Part, Literal["in", "out"]]:
        """Return the output features of the product at ``path``, and which side is divided."""
        whole = Part(out_features, unit=out_features, is_shared=True)
        if not self._is_divided:
            return whole, "out"
        style = self._style(path)
        if style == "rowwise":
            return Part(out_features), "in"
        if style != "colwise":
            return whole, "out"
        parent, _, leaf = path.rpartition(".")
        call = self._calls.get(parent)
        if call is None:
            return Part(out_features), "out"
        heads = call.num_kv_heads if leaf.startswith(("k_", "v_")) else call.num_heads
        unit, is_shared = out_features // heads, heads < call.num_heads
        return Part(out_features, unit=unit, is_shared=is_shared), "out"


def _check(given: Mapping[str, str], num_ranks: int) -> None:
    known = ("colwise", "rowwise", *OTHER)
    odd = {p: s for p, s in given.items() if s not in known and ".experts" not in p}
    if given and not odd:
        return
    found = ", ".join(f"{style} for {path}" for path, style in odd.items()) or "none"
    raise ConfigError(
        f"tp_size is {num_ranks}, and the model is served by transformers' own class, whose plan"
        f" for ranks is not followed: {found}.",
        remedy="Set --tp-size 1.",
    )


def _as_pattern(path: str) -> str:
    return re.escape(path).replace(r"\*", r"\d+")


def _expert_names(config: Any) -> Mapping[Matrix, str] | None:
    """Return what checkpoints call an expert's matrices where that is not as usual."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    for rule in get_checkpoint_conversion_mapping(config.model_type) or ():
        if any(re.search(r"\bw1\b", str(p)) for p in getattr(rule, "source_patterns", ())):
            return MIXTRAL_NAMES
    return None
