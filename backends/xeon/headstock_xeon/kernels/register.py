"""Offers the native kernels to the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock_xeon.kernels.attention import NativeAttention
from headstock_xeon.kernels.choices import ChoiceKernels
from headstock_xeon.kernels.drafts import DraftKernels
from headstock_xeon.kernels.encoder import EncoderKernels
from headstock_xeon.kernels.experts import NativeExperts
from headstock_xeon.kernels.features import FeatureKernels
from headstock_xeon.kernels.gates import GateKernels
from headstock_xeon.kernels.latent import LatentKernels, NativeLatentAttention
from headstock_xeon.kernels.layers import LayerKernels
from headstock_xeon.kernels.linear import NativeLinear
from headstock_xeon.kernels.lora import LoraKernels
from headstock_xeon.kernels.offers import offers_of
from headstock_xeon.kernels.routing import RoutingKernels
from headstock_xeon.kernels.sampling import SamplingKernels
from headstock_xeon.kernels.states import (
    NativeLinearAttention,
    NativeMamba2,
    NativeSelectiveScan,
    NativeShortConvolution,
)
from headstock_xeon.kernels.steps import StepKernels

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock_xeon.device import XeonDevice

PROVIDER = "xeon"
FUNCTIONS = (
    LayerKernels, FeatureKernels, GateKernels, LatentKernels, LoraKernels, EncoderKernels,
    RoutingKernels, SamplingKernels, ChoiceKernels, StepKernels, DraftKernels,
)  # fmt: skip
BUILDERS = (
    NativeLinear, NativeExperts, NativeAttention, NativeLatentAttention, NativeLinearAttention,
    NativeShortConvolution, NativeSelectiveScan, NativeMamba2,
)  # fmt: skip


def register(registry: OpRegistry, device: XeonDevice) -> None:
    """Offer every native kernel."""
    for kernels in FUNCTIONS:
        for op, requires, run in kernels(device).offers():
            registry.add(op, PROVIDER, run, requires=requires)
    for builder in BUILDERS:
        for op, requires in offers_of(builder):
            registry.add(op, PROVIDER, builder, requires=requires)
