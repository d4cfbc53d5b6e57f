"""What the kit is to compare: a class of ours, a class of transformers, and configurations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstock.graph.build import ModelClass
from headstock.graph.context import Context
from headstock.testing.oracle.sequences import Sequences, context, load_sequences

SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
"""Of the small configurations, where a case says nothing else."""
MAX_LENGTH = 128
"""Longest request that models are built for. Tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCase:
    """A family: our class, and small configurations of the class in transformers that is right.

    Attributes:
        name: For tests' names.
        model: Our class, as the engine would build it.
        config: Class of the configuration in transformers.
        oracle: Class of the model there.
        options: Of the configuration, beside and over :data:`SIZES`.
        variants: More configurations, changes of ``options``: what real checkpoints have.
        refused: Keys of ``config.json`` with values that change the result and are not computed.
        edit: Changes the saved folder, such as to the hub's own names; None: as it was saved.
        sizes: In place of :data:`SIZES`, for families with other keys.
        num_ranks: Among how many ranks layers are also divided.
        max_length: Longest request that the model is built for. Tokens.
        touches_ops_only: Whether the forward pass calls ops and views alone.
    """

    name: str
    model: ModelClass
    config: Callable[..., Any]
    oracle: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    refused: Mapping[str, Any] = field(default_factory=dict[str, Any])
    edit: Callable[[Path], None] | None = None
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZES)
    num_ranks: int = 2
    max_length: int = MAX_LENGTH
    touches_ops_only: bool = True

    @property
    def configurations(self) -> Mapping[str, Mapping[str, Any]]:
        """What is compared, by name; the first is ``plain``."""
        return {"plain": {}, **self.variants}

    def save(self, folder: Path, variant: str = "plain") -> Saved:
        """Write a checkpoint with random weights into ``folder``."""
        options = {**self.sizes, **self.options, **self.configurations[variant]}
        torch.manual_seed(0)
        oracle = self.oracle(self.config(**options, attn_implementation="eager")).eval()
        randomize(oracle)
        oracle.save_pretrained(folder)
        if self.edit is not None:
            self.edit(folder)
        return Saved(self, folder, oracle)


@dataclass(slots=True)
class Saved:
    """A checkpoint on disk, and the model that wrote it.

    Attributes:
        case: Whose configuration it has.
        folder: Where it is.
        oracle: The model.
    """

    case: ModelCase
    folder: Path
    oracle: Any

    def logits(self, ids: list[int]) -> Tensor:
        """Return the right logits of every token of a prompt. float32. [T, V]"""
        with torch.no_grad():
            return self.oracle(torch.tensor([ids]), use_cache=False).logits[0].float()

    def load(self, ctx: Context | None = None) -> Sequences:
        """Build and load our class."""
        ctx = ctx or context(max_length=self.case.max_length)
        return load_sequences(self.case.model, self.folder, ctx)

    def config(self) -> dict[str, Any]:
        """Return its ``config.json``."""
        return json.loads((self.folder / "config.json").read_text())


def randomize(model: Any) -> None:
    """Give norms and biases values that matter; they start as ones and zeros."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        is_float = value.is_floating_point()
        if is_float and ("norm" in name or name.endswith(("bias", "sinks"))):
            torch.nn.init.normal_(value.data, mean=0.5, std=0.3)


def prompt(length: int, seed: int = 0, vocab_size: int = 128) -> list[int]:
    """Return random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (length,), generator=generator).tolist()
