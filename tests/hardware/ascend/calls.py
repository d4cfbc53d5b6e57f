"""Every call that the ascend backend makes of torch-npu, on tensors of device ``npu`` without data.

``python calls.py`` prints what is wrong with each, as JSON. PyTorch checks arguments against the
schemas, torch-npu's own meta functions say what comes out.
"""

# ruff: noqa: T201 - what it prints is its result
from __future__ import annotations

import inspect
import json
import re
import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
import torch_npu  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily

import headstock_ascend
from headstock.ops.attention import BIDIRECTIONAL, StepBatch
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.latent import plain_latent_spec
from headstock.ops.linear import INT4_GROUP, INT8_GROUP, LinearSpec
from headstock.ops.moe import ExpertsSpec
from headstock.ops.routing import Routing
from headstock_ascend import layers, moe, sampling
from headstock_ascend.attention import PagedAttention
from headstock_ascend.int8_pages import Int8Attention
from headstock_ascend.linear import build_linear
from headstock_ascend.ragged import LatentAttention, RaggedAttention

NPU = torch.device("npu", 0)
DEVICE = SimpleNamespace(
    torch_device=NPU, capabilities=frozenset(), num_threads=1, note_updates=lambda known: None
)
DTYPES = (torch.bfloat16, torch.float16)
CHECKS: dict[str, Callable[[], None]] = {}


def check(run: Callable[[], None]) -> Callable[[], None]:
    """Have ``run`` made, without data."""
    CHECKS[run.__name__] = run
    return run


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=NPU)


def same(got: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Compare what came out with what should."""
    found = (tuple(got.shape), got.dtype, got.device.type)
    assert found == (shape, dtype, "npu"), f"{found} came out, not {(shape, dtype, 'npu')}"


def batch_of(*rows: tuple[int, int]) -> StepBatch:
    """Return a batch on the device; its tensors have no data."""
    with unset_fake_temporarily():
        batch = make_step(rows, 128, torch.device("cpu")).batch
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    tensors = {name: x for name, x in tensors.items() if isinstance(x, Tensor)}
    moved = {name: empty(*x.shape, dtype=x.dtype) for name, x in tensors.items()}
    return replace(batch, **moved, groups=())


@torch.library.register_fake("npu::npu_convert_weight_to_int4pack")
def packed(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """Stand in for the one op that has no meta function."""
    return weight.new_empty((weight.shape[0], weight.shape[1] // 8))


@check
def norms() -> None:
    for dtype in (*DTYPES, torch.float32):
        x_TD, weight_D = empty(5, 64, dtype=dtype), empty(64, dtype=dtype)
        same(layers.rms_norm(x_TD, weight_D, eps=1e-6), (5, 64), dtype)
        for out_TD in layers.add_rms_norm(x_TD, x_TD, weight_D, eps=1e-6):
            same(out_TD, (5, 64), dtype)


@check
def activation() -> None:
    for dtype in (*DTYPES, torch.float32):
        same(layers.silu_and_mul(empty(5, 128, dtype=dtype)), (5, 64), dtype)


@check
def attention() -> None:
    for dtype in DTYPES:
        for features in (frozenset[str](), frozenset({BIDIRECTIONAL})):
            spec = replace(plain_spec(dtype, 128), features=features)
            provider = PagedAttention(spec, DEVICE)
            kv = empty(*provider.kv_shape(9), dtype=dtype)
            for rows in ([(1, 5), (1, 200)], [(7, 7)], [(1, 1), (1, 3), (9, 140), (4, 4)]):
                batch = batch_of(*rows)
                provider.plan(batch)
                new = empty(batch.num_tokens, 2, 64, dtype=dtype)
                provider.write(new, new, kv, batch)
                q_THD = empty(batch.num_tokens, 4, 64, dtype=dtype)
                same(provider.run(q_THD, kv, batch), (batch.num_tokens, 4, 64), dtype)


@check
def int8_pages() -> None:
    for dtype in DTYPES:
        spec = replace(plain_spec(dtype, 128), kv_dtype=torch.int8)
        provider = Int8Attention(spec, DEVICE)
        kv = empty(*provider.kv_shape(9), dtype=torch.int8)
        for rows in ([(1, 5), (1, 200)], [(7, 7)], [(1, 1), (9, 140), (4, 4)]):
            batch = batch_of(*rows)
            provider.plan(batch)
            new = empty(batch.num_tokens, 2, 64, dtype=dtype)
            provider.write(new, new, kv, batch)
            q_THD = empty(batch.num_tokens, 4, 64, dtype=dtype)
            same(provider.run(q_THD, kv, batch), (batch.num_tokens, 4, 64), dtype)


@check
def windows() -> None:
    features = frozenset({"sliding_window", "sinks"})
    for dtype in DTYPES:
        spec = replace(plain_spec(dtype, 128), features=features, window=40)
        provider = RaggedAttention(spec, DEVICE)
        kv = empty(*provider.kv_shape(9), dtype=dtype)
        for rows in ([(1, 5), (1, 200)], [(7, 7)], [(1, 1), (9, 140), (4, 4)]):
            batch = batch_of(*rows)
            provider.plan(batch)
            q_THD, sinks_H = empty(batch.num_tokens, 4, 64, dtype=dtype), empty(4, dtype=dtype)
            for sinks in (None, sinks_H):
                out_THD = provider.run(q_THD, kv, batch, sinks_H=sinks)
                same(out_THD, (batch.num_tokens, 4, 64), dtype)


@check
def latents() -> None:
    sizes = {"latent_size": 512, "rotary_size": 64, "key_size": 128, "value_size": 128}
    for dtype in DTYPES:
        spec = replace(plain_latent_spec(dtype, 128), **sizes, num_heads=16)
        provider = LatentAttention(spec, DEVICE)
        kv = empty(*provider.kv_shape(9), dtype=dtype)
        for rows in ([(1, 5), (1, 200)], [(1, 1), (40, 140), (4, 4)]):
            batch = batch_of(*rows)
            provider.plan(batch)
            q_THQ = layers.rotate_and_write_latent(
                empty(batch.num_tokens, 16, 192, dtype=dtype),
                empty(batch.num_tokens, 576, dtype=dtype),
                empty(512, 64, dtype=torch.float32),
                empty(512, dtype=dtype),
                kv,
                batch,
                provider=provider,
                eps=1e-6,
                is_interleaved=True,
            )
            out_THV = provider.run(q_THQ, empty(16, 256, 512, dtype=dtype), kv, batch)
            same(out_THV, (batch.num_tokens, 16, 128), dtype)


@check
def rotation() -> None:
    for dtype in DTYPES:
        provider = PagedAttention(plain_spec(dtype, 128), DEVICE)
        kv, batch = empty(*provider.kv_shape(9), dtype=dtype), batch_of((7, 7), (1, 30))
        provider.plan(batch)
        norm_D = empty(64, dtype=dtype)
        for rotated in (64, 32):
            for is_interleaved in (False, True):
                q_THD = layers.rotate_and_write(
                    empty(8, 8 * 64, dtype=dtype),
                    empty(512, rotated, dtype=torch.float32),
                    norm_D,
                    norm_D,
                    kv,
                    batch,
                    provider=provider,
                    num_heads=4,
                    num_kv_heads=2,
                    head_dim=64,
                    eps=1e-6,
                    is_interleaved=is_interleaved,
                )
                same(q_THD, (8, 4, 64), dtype)


@check
def products() -> None:
    for dtype in DTYPES:
        for layout in (INT8_GROUP, INT4_GROUP):
            for group_size in (32, 192):
                spec = LinearSpec(
                    in_features=192,
                    out_features=37,
                    dtype=dtype,
                    layout=layout,
                    group_size=group_size,
                    has_bias=True,
                )
                provider = build_linear(spec, DEVICE)
                scale_OG = empty(37, 192 // group_size, dtype=torch.float32)
                part = {"weight": empty(37, 192, dtype=torch.int8), "scale": scale_OG}
                if layout == INT4_GROUP:
                    bytes_OI = empty(37, 96, dtype=torch.uint8)
                    part = {"weight": bytes_OI, "scale": scale_OG, "minimum": scale_OG}
                provider.load(part, 0)
                provider.load_bias(empty(37, dtype=dtype), 0)
                same(provider(empty(5, 192, dtype=dtype)), (5, 37), dtype)


@check
def experts() -> None:
    for dtype in (*DTYPES, torch.float32):
        spec = ExpertsSpec(
            hidden_size=64,
            intermediate_size=32,
            num_experts=8,
            experts_per_token=2,
            dtype=dtype,
        )
        provider = moe.build_experts(spec, DEVICE)
        provider.load({"weight": empty(32, 64, dtype=dtype)}, 3, "up", 0)
        weights_Tk = empty(5, 2, dtype=torch.float32)
        experts_Tk = empty(5, 2, dtype=torch.int32)
        same(provider(empty(5, 64, dtype=dtype), weights_Tk, experts_Tk), (5, 64), dtype)


@check
def routing() -> None:
    logits_TE, bias_E = empty(5, 64, dtype=torch.bfloat16), empty(64, dtype=torch.float32)
    theirs = Routing(
        k=4,
        scores="sigmoid",
        is_normalized=True,
        num_groups=8,
        groups_kept=2,
        group_best=2,
        factor=2.5,
    )
    found = (
        moe.route_topk(logits_TE, k=4, is_normalized=True),
        moe.route_topk(logits_TE, k=4, is_normalized=False),
        moe.route_experts(logits_TE, bias_E, routing=theirs),
        moe.route_experts(logits_TE, None, routing=theirs),
    )
    for weights_Tk, experts_Tk in found:
        same(weights_Tk, (5, 4), torch.float32)
        same(experts_Tk, (5, 4), torch.int32)


@check
def draws() -> None:
    """PyTorch's operators alone: what they take and give is asked on the device, too."""
    logits_SV, per_S = empty(5, 70, dtype=torch.float32), empty(5, dtype=torch.float32)
    ids_S, ids_SB = empty(5, dtype=torch.int64), empty(5, 3, dtype=torch.int64)
    counts_SV = empty(5, 70, dtype=torch.int32)
    shaped_SV = sampling.apply_penalties(logits_SV, counts_SV, counts_SV > 0, *[per_S] * 3)
    shaped_SV = sampling.add_bias(shaped_SV, ids_SB, empty(5, 3, dtype=torch.float32))
    shaped_SV = sampling.apply_masks(shaped_SV, empty(5, 3, dtype=torch.int32))
    same(shaped_SV, (5, 70), torch.float32)
    same(sampling.argmax_tokens(shaped_SV), (5,), torch.int64)
    top_k_S = empty(5, dtype=torch.int32)
    drawn_S = sampling.draw_tokens(shaped_SV, per_S, top_k_S, per_S, per_S, ids_S, ids_S)
    same(drawn_S, (5,), torch.int64)
    chosen_S, *_, asked_SB = sampling.token_logprobs(logits_SV, drawn_S, ids_SB, k=4)
    same(chosen_S, (5,), torch.float32)
    same(asked_SB, (5, 3), torch.float32)


@check
def device() -> None:
    """What the device asks of ``torch.npu`` is there, and takes what it is given."""
    folder = Path(headstock_ascend.__file__).parent
    source = "".join((folder / name).read_text() for name in ("device.py", "open.py"))
    names = set(re.findall(r"\b_?npu\.(\w+)\(", source))
    lacking = [name for name in names if not hasattr(torch.npu, name)]
    assert len(names) > 10, names
    assert not lacking, lacking
    given = {"npu_graph", "pool", "stream", "auto_dispatch_capture", "capture_error_mode"}
    assert given <= set(inspect.signature(torch.npu.graph).parameters)
    assert list(inspect.signature(torch.npu.NPUGraph.update).parameters)[1] == "cpu_update_input"
    handlers = import_module("torch_npu.npu._npugraph_handlers.npugraph_handler")
    for func, name in (
        (torch.ops.npu.npu_fused_infer_attention_score.default, "actual_seq_lengths_kv"),
        (torch.ops.npu.npu_fused_infer_attention_score_v2.default, "actual_seq_kvlen"),
    ):
        handler = handlers._NPU_GRAPH_OP_HANDLERS[func.__name__]
        assert name in [spec[2] for spec in handler.get_update_specs(func.__name__)]


@check
def group() -> None:
    """HCCL's process group is called as the backend calls it."""
    hccl = torch_npu._C._distributed_c10d.ProcessGroupHCCL
    wanted = ("allreduce", "_allgather_base", "broadcast", "abort", "eager_connect_single_device")
    assert all(hasattr(hccl, name) for name in wanted)
    assert hasattr(hccl.Options(), "_timeout")


def main() -> None:
    found: dict[str, str] = {}
    for name, run in CHECKS.items():
        try:
            with FakeTensorMode():
                run()
            found[name] = ""
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
