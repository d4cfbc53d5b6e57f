"""The whole forward pass of a model as one op: who offers it, takes over the steps that it covers.

Where none does, and for steps that none covers, the model's layers compute, op by op.

Shapes: T tokens of the step, R rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from headstock.ops.base import Spec, op

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from headstock.ops.attention import CachedLayer, StepBatch
    from headstock.ops.device import OpDevice

FEATURES = frozenset({"windows", "states", "several-ranks", "media"})
"""What a model may have beyond layers of full attention on one rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStepSpec:
    """A loaded model, as a provider of its steps sees it.

    Attributes:
        architecture: As ``config.json`` names it.
        config: The configuration, in Hugging Face keys.
        dtype: Of the hidden states.
        model: The model. Its weights are loaded and keep their addresses; what its class's
            attributes are is between the provider and that class.
        layers: Its layers that keep state, in order. Their ``kv`` comes after the provider was
            built, and once more when the cache has been sized: look at it in ``run``.
        hidden_size: D.
        num_ranks: Ranks that share the model.
        features: What the model has of :data:`FEATURES`.
    """

    architecture: str
    config: Mapping[str, Any]
    dtype: torch.dtype
    model: Any
    layers: Sequence[CachedLayer]
    hidden_size: int
    num_ranks: int = 1
    features: frozenset[str] = frozenset()

    def as_spec(self) -> Spec:
        """Return what the op ``model_step`` is resolved for: with its architecture."""
        return Spec(
            dtype=str(self.dtype).removeprefix("torch."),
            sizes={
                "hidden_size": self.hidden_size,
                "num_layers": len(self.layers),
                "num_ranks": self.num_ranks,
            },
            architecture=self.architecture,
            features=self.features,
        )


@dataclass(frozen=True, slots=True)
class StepWidth:
    """The size that a step runs at, padded.

    Attributes:
        num_tokens: T.
        num_rows: R.
        query: Tokens of each row, equally many; 0: they differ, as in a step with a prompt.
        has_adapters: Whether some row has a LoRA adapter.
        has_media: Whether some tokens have features of images instead of embeddings.
    """

    num_tokens: int
    num_rows: int
    query: int
    has_adapters: bool = False
    has_media: bool = False


class StepProvider(Protocol):
    """Computes the forward pass of one model."""

    def why_not(self, width: StepWidth) -> str | None:
        """Say why steps of ``width`` are left to the layers; None: they are taken over.

        Asked once for each width, and shown to the operator: a few words.
        """
        ...

    def run(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the last hidden states, and leave keys and values where the layers would.

        The layers' providers have planned the step. May be captured.

        Args:
            ids_T: int64. [T]
            batch: The step; ``batch.groups`` has the views of the page groups.

        Returns:
            [T, D]; or [R, D], of the rows' last tokens, where ``batch.wants_last``.
        """
        ...


class LayeredStep:
    """The reference: the model's own layers, for every width."""

    def __init__(self, spec: ModelStepSpec) -> None:
        self._forward: Callable[[Tensor, StepBatch], Tensor] = spec.model.forward

    def why_not(self, width: StepWidth) -> str | None:
        """Return None."""
        return None

    def run(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return what the layers compute."""
        return self._forward(ids_T, batch)


@op(is_built=True, features=FEATURES)
def model_step(spec: ModelStepSpec, device: OpDevice) -> StepProvider:
    """Build the reference: the model's own layers.

    Resolved with :meth:`ModelStepSpec.as_spec`, once the model is loaded, where it is offered.
    The conformance kit certifies a provider with the engine's tests: greedy tokens in float32.
    """
    return LayeredStep(spec)
