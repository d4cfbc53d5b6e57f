"""Offers the native kernels to the registry."""

from __future__ import annotations

from headstock.ops.base import OpRegistry
from headstock.ops.offers import offer
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.attention import LatentKernels, NativeAttention, NativeLatentAttention
from headstock_xeon.kernels.compressed import CompressedKernels, NativeCompressedAttention
from headstock_xeon.kernels.drafts import DraftKernels
from headstock_xeon.kernels.experts import NativeExperts, RoutingKernels
from headstock_xeon.kernels.features import FeatureKernels
from headstock_xeon.kernels.layers import LayerKernels
from headstock_xeon.kernels.linear import LoraKernels, NativeLinear
from headstock_xeon.kernels.sampling import SamplingKernels
from headstock_xeon.kernels.sparse import NativeBlockIndexer, NativeTokenIndexer
from headstock_xeon.kernels.states import STATES
from headstock_xeon.kernels.steps import StepKernels
from headstock_xeon.kernels.streams import StreamKernels

PROVIDER = "xeon"
FUNCTIONS = (
    LayerKernels, FeatureKernels, LatentKernels, LoraKernels, RoutingKernels, SamplingKernels,
    StepKernels, DraftKernels, StreamKernels, CompressedKernels,
)  # fmt: skip
BUILDERS = (
    NativeLinear, NativeExperts, NativeAttention, NativeLatentAttention, NativeTokenIndexer,
    NativeBlockIndexer, NativeCompressedAttention, *STATES,
)  # fmt: skip


def register(registry: OpRegistry, device: XeonDevice) -> None:
    """Offer every native kernel."""
    offer(registry, PROVIDER, *(kernels(device) for kernels in FUNCTIONS), *BUILDERS)
