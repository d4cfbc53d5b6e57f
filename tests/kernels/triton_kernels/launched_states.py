"""Launches what reads and writes recurrent states, and the gates and features around them."""

from __future__ import annotations

import torch
from launched_kernels import FakeDevice, batch_of

from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec
from headstock.ops.mamba2 import Mamba2Spec, Mamba2Weights
from headstock.ops.selective_scan import ScanWeights, SelectiveScanSpec
from headstock.ops.short_convolution import ConvolutionWeights, ShortConvolutionSpec
from headstock_triton.features import Features
from headstock_triton.gates import Gates
from headstock_triton.linear_attention import TritonLinearAttention
from headstock_triton.mamba2 import TritonMamba2
from headstock_triton.selective_scan import TritonSelectiveScan
from headstock_triton.short_convolution import TritonShortConvolution
from headstock_triton.target import Target


def compile_delta(target: Target, dtype: torch.dtype) -> None:
    for by_channel in (False, True):
        compile_delta_rule(target, dtype, by_channel)


def compile_delta_rule(target: Target, dtype: torch.dtype, by_channel: bool) -> None:
    spec = LinearAttentionSpec(
        num_key_heads=16,
        num_value_heads=32,
        key_size=128,
        value_size=128,
        kernel_size=4,
        dtype=dtype,
        max_rows=64,
        max_tokens=512,
        decays_by_channel=by_channel,
    )
    built, small = TritonLinearAttention(spec, FakeDevice()), torch.zeros(spec.num_decays)
    built._target = target
    weights = DeltaWeights(
        conv_CW=torch.zeros((spec.conv_size, 4), dtype=dtype), decay_V=small, bias_G=small
    )
    kv = torch.zeros(built.kv_shape(3))
    for batch in (batch_of(2, 2, 0), batch_of(2, 16, 0), batch_of(2, 64, 0)):
        tokens = batch.num_tokens
        qkv = torch.zeros((tokens, spec.conv_size), dtype=dtype)
        ba = torch.zeros((tokens, spec.num_decays), dtype=dtype)
        built.plan(batch)
        y = built.run(qkv, ba, ba, weights, kv, batch)
        Gates(target).gated_norm(y, y, torch.zeros(128, dtype=dtype), eps=1e-6)
        Gates(target).gate_features(ba, ba)
        Gates(target).gate_heads(ba, ba[:, :1])


def compile_states(target: Target, dtype: torch.dtype) -> None:
    spec = Mamba2Spec(
        num_heads=64,
        num_groups=8,
        head_dim=64,
        state_size=128,
        kernel_size=4,
        dtype=dtype,
        max_rows=64,
        max_tokens=512,
    )
    conv = ShortConvolutionSpec(size=2048, kernel_size=3, dtype=dtype, max_rows=64, max_tokens=512)
    mamba, short = TritonMamba2(spec, FakeDevice()), TritonShortConvolution(conv, FakeDevice())
    one = SelectiveScanSpec(size=8192, state_size=16, dtype=dtype, max_rows=64, max_tokens=512)
    scan = TritonSelectiveScan(one, FakeDevice())
    mamba._target = short._target = scan._target = target
    scanned = ScanWeights(decay_CN=torch.zeros(8192, 16), skip_C=torch.zeros(8192))
    small = torch.zeros(spec.num_heads)
    weights = Mamba2Weights(
        conv_CW=torch.zeros((spec.conv_size, 4), dtype=dtype),
        conv_bias_C=torch.zeros(spec.conv_size, dtype=dtype),
        decay_H=small,
        step_bias_H=small,
        skip_H=small,
    )
    taps = ConvolutionWeights(
        conv_CW=torch.zeros((2048, 3), dtype=dtype), bias_C=torch.zeros(2048, dtype=dtype)
    )
    for batch in (batch_of(2, 2, 0), batch_of(2, 64, 0)):
        tokens = batch.num_tokens
        mamba.plan(batch)
        xbc = torch.zeros((tokens, spec.conv_size), dtype=dtype)
        dt = torch.zeros((tokens, spec.num_heads), dtype=dtype)
        y = mamba.run(xbc, dt, weights, torch.zeros(mamba.kv_shape(3)), batch).flatten(1)
        x, bc = torch.zeros((tokens, 8192), dtype=dtype), torch.zeros((tokens, 32), dtype=dtype)
        scan.run(x, x, bc, scanned, torch.zeros(scan.kv_shape(3)), batch)
        bcx = torch.zeros((tokens, 3 * 2048), dtype=dtype)
        short.run(bcx, taps, torch.zeros(short.kv_shape(3)), batch)
        gates, features, wide = Gates(target), Features(target), torch.zeros(4096, dtype=dtype)
        gates.gate_by_silu(y, y)
        gates.gate_by_softplus(y, y)
        for is_first in (True, False):
            gates.gated_group_norm(y, y, wide, num_groups=8, eps=1e-5, is_gated_first=is_first)
        features.add_features(y, y)
        features.scale_features(y, factor=0.5)
        features.weigh_features(y, wide)
        places = torch.zeros(tokens, dtype=torch.int64)
        features.scale_by_position(y.unflatten(1, (64, 64)), places, torch.zeros(9))
