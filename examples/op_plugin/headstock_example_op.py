"""An op of one's own, for whatever backend serves.

    pip install ./examples/op_plugin
    headstock doctor                                   says who computes silu_and_mul
    headstock serve --op silu_and_mul=example_op       in place of a faster one
    headstock serve --disable-plugin example_op        without it

Shapes: T tokens, F features of the feed-forward layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.plugins.hooks import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device

HOOK_API = (2, 0)
PROVIDER = "example_op"


@hookimpl
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer the op: above the reference, whose priority is 0, and below every fast one, at 100."""
    from headstock.ops.activation import silu_and_mul
    from headstock.ops.base import Requires

    requires = Requires(dtypes=frozenset({"float32", "bfloat16"}))
    registry.add(silu_and_mul, PROVIDER, gated, requires=requires, priority=1)


def gated(gate_up_TG: Tensor) -> Tensor:
    """Return silu(gate) * up; names and kinds of the parameters are the reference's.

    Args:
        gate_up_TG: Gate features, then as many up features. [T, 2 F]

    Returns:
        [T, F]
    """
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=-1)
    return gate_TF * gate_TF.sigmoid() * up_TF
