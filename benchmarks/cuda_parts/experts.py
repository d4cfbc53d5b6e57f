"""Mixtures of experts."""

from functools import partial

import torch
from torch.nn.functional import linear

from cuda_parts.timing import BF16, Here, Report, randn
from headstock.ops.moe import ExpertsSpec
from headstock_triton import moe
from headstock_triton.routing import Routing
from headstock_triton.target import Target

QWEN3_30B_A3B = ExpertsSpec(
    hidden_size=2048, intermediate_size=768, num_experts=128, experts_per_token=8, dtype=BF16
)


def part_moe(report: Report) -> None:
    """Time the experts of a layer of Qwen3-30B-A3B, with choices as random logits make them."""
    spec = QWEN3_30B_A3B
    routing = Routing(Target.of(Here()))
    layers = [make_experts(spec) for _ in range(2)]
    for tokens in (1, 16, 64, 256, 2048, 8192):
        case = f"T={tokens}"
        x, logits = randn(tokens, spec.hidden_size), randn(tokens, spec.num_experts)
        route = partial(routing.route_topk, logits, k=spec.experts_per_token, is_normalized=True)
        report.time("route_topk", [route] * 8, num_bytes=logits.numel() * 2, case=case)
        shares, chosen = route()
        flops, num_bytes = cost_of_experts(spec, chosen)
        facts = {"flops": flops, "num_bytes": num_bytes, "case": case}
        line_up = partial(routing.line_up, chosen, spec.num_experts, 64)
        report.time("line_up", [line_up] * 8, case=case)
        default = moe.choose_tuning(chosen.numel(), spec, Target.of(Here()))
        for tuning in dict.fromkeys([default, *moe_tunings(tokens)]):
            for layer in layers:
                layer._tuning = tuning
            calls = [partial(layer, x, shares, chosen) for layer in layers]
            shape = (tuning.block_m, tuning.gate_up, tuning.down)
            report.time("experts", calls, tuning=shape, is_default=tuning == default, **facts)
        loops = [experts_by_loop(layer, x, shares, chosen) for layer in layers]
        report.time("loop over experts", loops, **facts)
        grouped = [grouped_products(layer, x, chosen) for layer in layers]
        report.time("torch grouped_mm, products only", grouped, **facts)
        if report.shard is None:
            ours, right = layers[0](x, shares, chosen).double(), loops[0]().double()
            report.add(
                "experts error", case=case, error=float((ours - right).norm() / right.norm())
            )
    report.best("experts")


def make_experts(spec: ExpertsSpec) -> moe.FusedExperts:
    built = moe.FusedExperts(spec, Here())
    for matrices in (built._gate_up, built._down):
        for expert in matrices.parts["weight"]:
            expert.copy_(randn(*expert.shape) * expert.shape[1] ** -0.5)
    return built


def cost_of_experts(spec: ExpertsSpec, chosen) -> tuple[int, int]:
    """Return operations, and the bytes of the experts chosen and of activations in and out."""
    matrices = 3 * spec.hidden_size * spec.intermediate_size
    num_used = len(torch.unique(chosen))
    activations = 2 * len(chosen) * spec.hidden_size
    return 2 * chosen.numel() * matrices, 2 * (num_used * matrices + activations)


def moe_tunings(tokens: int) -> list[moe.MoETuning]:
    rows = (16,) if tokens < 64 else (16, 32, 64) if tokens <= 256 else (64, 128)
    shapes = {
        16: [((32, 128, 4, 4), (64, 128, 4, 4)), ((16, 256, 4, 3), (32, 256, 4, 3)),
             ((64, 64, 4, 4), (64, 64, 4, 5)), ((32, 128, 2, 4), (32, 128, 4, 4))],
        32: [((64, 64, 4, 4), (128, 64, 4, 4)), ((32, 128, 4, 3), (64, 128, 4, 3))],
        64: [((64, 64, 4, 4), (128, 64, 4, 4)), ((128, 64, 8, 3), (256, 64, 8, 3)),
             ((64, 128, 4, 2), (128, 128, 4, 2)), ((32, 64, 4, 5), (64, 64, 4, 5))],
        128: [((64, 64, 8, 3), (128, 64, 8, 3)), ((64, 64, 8, 4), (128, 64, 8, 4)),
              ((128, 64, 8, 3), (256, 64, 8, 3)), ((64, 64, 4, 3), (128, 64, 4, 3))],
    }  # fmt: skip
    return [moe.MoETuning(m, gate_up, down) for m in rows for gate_up, down in shapes[m]]


def experts_by_loop(layer: moe.FusedExperts, x, shares, chosen):
    """Return what does it expert by expert, its rows known beforehand as no server knows them."""
    by_expert = [(e, *torch.where(chosen == e)) for e in torch.unique(chosen).tolist()]
    gate_up, down = layer._gate_up.parts["weight"], layer._down.parts["weight"]

    def run():
        out = torch.zeros_like(x, dtype=torch.float32)
        for expert, tokens, places in by_expert:
            gate, up = linear(x[tokens], gate_up[expert]).chunk(2, dim=-1)
            y = linear(torch.nn.functional.silu(gate) * up, down[expert])
            out.index_add_(0, tokens, y * shares[tokens, places, None])
        return out.to(x.dtype)

    return run


def grouped_products(layer: moe.FusedExperts, x, chosen):
    """Return PyTorch's grouped products on rows that are lined up already."""
    counts = torch.bincount(chosen.flatten().long(), minlength=layer.spec.num_experts)
    ends = counts.cumsum(0).int()
    rows = x[chosen.flatten().long().argsort(stable=True) // chosen.shape[1]]
    between = randn(len(rows), layer.spec.intermediate_size)
    gate_up, down = (m.parts["weight"].transpose(1, 2) for m in (layer._gate_up, layer._down))

    def run():
        torch._grouped_mm(rows, gate_up, offs=ends)
        return torch._grouped_mm(between, down, offs=ends)

    return run
