"""A whole decode step of one's own: takes over steps of Llama, at the widths that it covers.

    pip install ./examples/step_provider
    pytest --pyargs headstock.testing.suite --headstock-backend=reference -k "7_engine and llama"
    headstock serve --backend reference          the banner: "whole steps   example_step for …"
    headstock serve --op model_step=reference    without it

This one calls what the model's layers were built with, one after another, without the layers
between. Yours packs the weights into a form of its own when it is built, and launches one kernel.

Shapes: T tokens of the step, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.plugins.hooks import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.attention import StepBatch
    from headstock.ops.base import OpRegistry
    from headstock.ops.device import OpDevice
    from headstock.ops.model_step import ModelStepSpec, StepWidth
    from headstock.plugins.device import Device

HOOK_API = (2, 2)
PROVIDER = "example_step"
MOST_ROWS = 32


@hookimpl
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer the step for one architecture, on one rank, with layers of full attention alone."""
    from headstock.ops.base import Requires, Sizes
    from headstock.ops.model_step import model_step

    requires = Requires(
        architectures=frozenset({"LlamaForCausalLM"}),
        sizes={"num_ranks": Sizes(only=frozenset({1}))},
    )
    registry.add(model_step, PROVIDER, build_step, requires=requires)


class DecodeStep:
    """Decode steps: a token a row, up to 32 rows."""

    def __init__(self, spec: ModelStepSpec) -> None:
        decoder = spec.model.model  # as headstock_models.llama names its parts
        self._embed, self._norm = decoder.embed, decoder.norm
        self._layers = [
            (
                layer.norm,
                layer.self_attn.qkv,
                layer.self_attn.attend,
                layer.self_attn.out,
                layer.mlp_norm,
                layer.mlp,
            )
            for layer in decoder.layers
        ]

    def why_not(self, width: StepWidth) -> str | None:
        """Say why a step is left to the layers: a few words, which the banner shows."""
        if width.has_adapters or width.has_media:
            return "adapters and images are the layers' business"
        if width.query != 1:
            return "a row has more than one token"
        return f"more than {MOST_ROWS} rows" if width.num_rows > MOST_ROWS else None

    def run(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the last hidden states. [T, D]"""
        x_TD, sum_TD = self._embed(ids_T), None
        for norm, qkv, attend, out, mlp_norm, mlp in self._layers:
            x_TD, sum_TD = norm(x_TD, sum_TD)
            x_TD, sum_TD = mlp_norm(out(attend(qkv(x_TD), batch)), sum_TD)
            x_TD = mlp(x_TD)
        return self._norm(x_TD, sum_TD)[0]


def build_step(spec: ModelStepSpec, device: OpDevice) -> DecodeStep:
    """Build the step of a loaded model; parameters are named as the reference's."""
    return DecodeStep(spec)
