"""The small ops of a layer, and a whole decode step."""

import itertools
from functools import partial

import torch

from cuda_parts.attention import make_batch, make_spec
from cuda_parts.timing import BF16, DEVICE, Here, Report, randn
from headstock.ops.linear import LinearSpec
from headstock.ops.norm import rms_norm
from headstock_triton.activation import Activations
from headstock_triton.attention.provider import PagedAttention
from headstock_triton.dense import build_dense
from headstock_triton.norm import Norms
from headstock_triton.rotary import Rotations
from headstock_triton.sampling.argmax import Argmax
from headstock_triton.target import Target


def part_small(report: Report) -> None:
    target = Target.of(Here())
    norms, acts, rotations = Norms(target), Activations(target), Rotations(target)
    argmax = Argmax(target)
    for tokens in (1, 16, 256, 8192):
        for hidden, ffn, heads in ((1024, 3072, 16), (4096, 12288, 32)):
            case = f"T={tokens} D={hidden}"
            x, residual, weight = randn(tokens, hidden), randn(tokens, hidden), randn(hidden)
            nb = tokens * hidden * 2
            many = [partial(norms.rms_norm, x, weight, eps=1e-6)] * 8
            report.time("rms_norm", many, num_bytes=2 * nb, case=case)
            many = [partial(norms.add_rms_norm, x, residual, weight, eps=1e-6)] * 8
            report.time("add_rms_norm", many, num_bytes=4 * nb, case=case)
            gate_up = randn(tokens, 2 * ffn)
            many = [partial(acts.silu_and_mul, gate_up)] * 8
            report.time("silu_and_mul", many, num_bytes=tokens * ffn * 6, case=case)
            batch, num_pages = make_batch([tokens], [tokens], 64)
            spec = make_spec(heads, 8, batch, 64)
            provider = PagedAttention(spec, Here())
            kv = randn(*provider.kv_shape(num_pages))
            qkv = randn(tokens, (heads + 16) * 128)
            table, norm = randn(32768, 128, dtype=torch.float32), randn(128)
            many = [
                partial(
                    rotations.rotate_and_write,
                    qkv, table, norm, norm, kv, batch, provider=provider, num_heads=heads,
                    num_kv_heads=8, head_dim=128, eps=1e-6, is_interleaved=False,
                )
            ] * 8  # fmt: skip
            report.time("rotate_and_write", many, num_bytes=2 * qkv.numel() * 2, case=case)
    for rows in (1, 16, 256):
        logits = randn(rows, 151936, dtype=torch.float32)
        many = [partial(argmax.argmax_tokens, logits)] * 4
        report.time("argmax", many, num_bytes=rows * 151936 * 4, case=f"S={rows}")
        many = [partial(torch.argmax, logits, dim=-1)] * 4
        report.time("torch argmax", many, num_bytes=rows * 151936 * 4, case=f"S={rows}")


MODELS = {
    "0.6B": {"layers": 28, "hidden": 1024, "ffn": 3072, "heads": 16},
    "8B": {"layers": 36, "hidden": 4096, "ffn": 12288, "heads": 32},
}


def part_step(report: Report) -> None:
    """Time a decode step as the graph room strings it together."""
    for name, rows, has_pdl in itertools.product(MODELS, (1, 4, 16, 256), (True, False)):
        if rows > 1 and not has_pdl:
            continue
        step, weight_bytes = make_decode_step(MODELS[name], [512] * rows, has_pdl)
        facts = {"case": f"{name} R={rows}", "pdl": has_pdl}
        report.time("step", [step], num_bytes=weight_bytes, **facts)
        if rows == 1 and has_pdl and report.shard is None:
            profile(report, step, name)
        del step
        torch.cuda.empty_cache()


def make_decode_step(model, lengths, has_pdl):
    from dataclasses import replace

    target = Target.of(Here())
    if not has_pdl:
        target = replace(target, has_pdl=False)
    hidden, ffn, heads = model["hidden"], model["ffn"], model["heads"]
    rows = len(lengths)
    batch, num_pages = make_batch([1] * rows, lengths, 64)
    norms, acts, rotations = Norms(target), Activations(target), Rotations(target)
    argmax = Argmax(target)
    provider = PagedAttention(make_spec(heads, 8, batch, 64), Here())
    provider._target = target
    table, head_norm = randn(32768, 128, dtype=torch.float32), randn(128)

    def matrix(size_in, size_out):
        built = build_dense(
            LinearSpec(in_features=size_in, out_features=size_out, dtype=BF16), Here()
        )
        built._target = target
        for begin in range(0, size_out, 16384):
            end = min(begin + 16384, size_out)
            built.load({"weight": randn(end - begin, size_in) * size_in**-0.5}, begin)
        return built

    layers = [
        {
            "qkv": matrix(hidden, (heads + 16) * 128),
            "o": matrix(heads * 128, hidden),
            "gate_up": matrix(hidden, 2 * ffn),
            "down": matrix(ffn, hidden),
            "norms": (randn(hidden), randn(hidden)),
            "kv": randn(*provider.kv_shape(num_pages)),
        }
        for _ in range(model["layers"])
    ]
    head = matrix(hidden, 151936)
    ids = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    weight_bytes = sum(
        layer[n].num_bytes for layer in layers for n in ("qkv", "o", "gate_up", "down")
    )
    weight_bytes += head.num_bytes
    provider.plan(batch)

    def step():
        x = head.rows(ids, 0)
        residual = x.clone()
        normed = norms.rms_norm(x, layers[0]["norms"][0], eps=1e-6)
        for index, layer in enumerate(layers):
            if index:
                normed, residual = norms.add_rms_norm(x, residual, layer["norms"][0], eps=1e-6)
            q = rotations.rotate_and_write(
                layer["qkv"](normed), table, head_norm, head_norm, layer["kv"], batch,
                provider=provider, num_heads=heads, num_kv_heads=8, head_dim=128, eps=1e-6,
                is_interleaved=False,
            )  # fmt: skip
            x = layer["o"](provider.run(q, layer["kv"], batch).flatten(1))
            normed, residual = norms.add_rms_norm(x, residual, layer["norms"][1], eps=1e-6)
            x = layer["down"](acts.silu_and_mul(layer["gate_up"](normed)))
        last, _ = norms.add_rms_norm(x, residual, layers[0]["norms"][0], eps=1e-6)
        ids.copy_(argmax.argmax_tokens(head(last).float()) % 1000)

    return step, weight_bytes


def profile(report: Report, step, name: str) -> None:
    """Report the time of each kernel of one eager step, summed by name."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CUDA]) as trace:
        graph.replay()
        torch.cuda.synchronize()
    for event in sorted(trace.key_averages(), key=lambda e: -e.device_time_total)[:14]:
        report.add(
            "kernel",
            case=f"{name} step",
            kernel=event.key[:60],
            calls=event.count,
            each_us=round(event.device_time_total / max(event.count, 1), 2),
        )


def part_check(report: Report) -> None:
    """Check one large result of each kernel in bf16 against float64; not a replacement of tests."""
    x, weight = randn(64, 4096), randn(4096)
    ours = Norms(Target.of(Here())).rms_norm(x, weight, eps=1e-6).double()
    right = rms_norm.reference(x.double(), weight.double(), eps=1e-6)
    report.add("rms_norm error", error=float((ours - right).norm() / right.norm()))
