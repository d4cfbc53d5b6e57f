"""Cases of routing by scores, bias and groups, and of shared experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.moe import NO_EXPERT
from headstock.ops.routing import Routing


def route_cases(bench: Bench) -> Iterator[Case]:
    """Yield kinds of scores, biases that decide, groups, ties, sizes, views and padding."""
    draw = bench.draw()

    def logits(num_tokens: int, num_experts: int) -> Tensor:
        # Distinct in any dtype, so that an expert's rank does not hang on a rounding.
        order = torch.rand(num_tokens, num_experts, generator=draw.generator).argsort(dim=1)
        return ((order - num_experts / 2) / 32).to(bench.dtype).to(draw.device)

    def case(
        label: str,
        logits_TE: Tensor,
        bias_E: Tensor | None,
        routing: Routing,
        real: int | None = None,
    ) -> Case:
        sizes = {
            "num_experts": logits_TE.shape[1],
            "experts_per_token": routing.k,
            "num_groups": routing.num_groups,
        }
        return Case(
            label=label,
            spec=replace(bench.spec(sizes), features=routing.features),
            args=(logits_TE, bias_E),
            kwargs={"routing": routing},
            num_real=real,
        )

    root = Routing(k=6, scores="sqrt_softplus", is_normalized=True, factor=1.5)
    sigmoid = Routing(k=4, scores="sigmoid", is_normalized=True, factor=2.5)
    softmax = Routing(k=3, factor=16.0)
    for num_tokens, num_experts in ((1, 32), (17, 60), (3, 384), (1030, 16)):
        logits_TE = logits(num_tokens, num_experts)
        bias_E = draw.uniform(num_experts, low=-0.2, high=0.2)
        what = f"{num_tokens} tokens, {num_experts} experts"
        yield case(f"sigmoid, {what}", logits_TE, bias_E, sigmoid)
        yield case(f"sigmoid without bias, {what}", logits_TE, None, sigmoid)
        yield case(f"softmax, {what}", logits_TE, None, softmax)
        yield case(f"root of softplus, {what}", logits_TE, bias_E, root)
    logits_TE, bias_E = logits(19, 256), draw.uniform(256, low=-0.5, high=0.5)
    v3 = replace(sigmoid, k=8, num_groups=8, groups_kept=4, group_best=2)
    yield case("groups by their best two", logits_TE, bias_E, v3)
    yield case("not normalised", logits_TE, bias_E, replace(v3, is_normalized=False))
    v2 = replace(softmax, k=6, num_groups=8, groups_kept=3)
    yield case("groups by their best", logits_TE[:, :160], None, v2)
    one = replace(v3, k=32, num_groups=8, groups_kept=1)
    yield case("all of one group", logits_TE, bias_E, one)
    equal_TE = torch.zeros_like(logits_TE)
    yield case("all equal", equal_TE, None, v3)
    yield case("the bias decides", equal_TE, bias_E, v3)
    yield case("all impossible", equal_TE - 200, None, v3)
    padded_TE = logits_TE.clone()
    padded_TE[11:] = torch.nan
    yield case("padding", padded_TE, bias_E, v3, 11)


def by_token_cases(bench: Bench) -> Iterator[Case]:
    """Yield kinds of scores, sizes, an id that comes twice, and padding."""
    from headstock.ops.routing import Routing

    draw = bench.draw()
    for scores in ("sqrt_softplus", "sigmoid", "softmax"):
        for num_tokens, num_experts, k in ((1, 8, 2), (17, 60, 4), (130, 256, 6)):
            routing = Routing(k=k, scores=scores, is_normalized=k > 2, factor=1.5)
            order = torch.rand(50, num_experts, generator=draw.generator).argsort(dim=1)[:, :k]
            logits_TE = draw.normal(num_tokens, num_experts, dtype=bench.dtype, scale=4)
            num_real = max(1, num_tokens - 3)
            logits_TE[num_real:] = torch.nan
            ids_T = draw.integers(num_tokens, high=50)
            ids_T[num_real - 1] = ids_T[0]
            sizes = {"num_experts": num_experts, "experts_per_token": k}
            yield Case(
                label=f"{scores}, {num_tokens} tokens, {k} of {num_experts}",
                spec=replace(bench.spec(sizes), features=routing.features),
                args=(logits_TE, ids_T, order.to(torch.int32).to(draw.device)),
                kwargs={"routing": routing},
                num_real=num_real,
            )


def weigh_cases(bench: Bench) -> Iterator[Case]:
    """Yield sizes, and tokens without experts."""
    draw = bench.draw()
    for num_tokens, num_experts, k in ((1, 8, 2), (17, 60, 4), (1030, 128, 8)):
        experts_Tk = torch.randint(num_experts, (num_tokens, k), generator=draw.generator)
        experts_Tk[num_tokens // 2 + 1 :, 0] = NO_EXPERT
        yield Case(
            label=f"{num_tokens} tokens, {k} of {num_experts}",
            spec=bench.spec({}),
            args=(
                draw.uniform(num_tokens, k),
                experts_Tk.to(torch.int32).to(draw.device),
                draw.uniform(num_experts, low=0.5, high=2.0),
            ),
        )


def shared_cases(bench: Bench) -> Iterator[Case]:
    """Yield sizes, with and without a gate, views and padding."""
    draw, dtype = bench.draw(), bench.dtype
    spec = bench.spec({})
    for num_tokens, size in ((1, 64), (5, 7), (33, 576), (2, 7168), (1030, 16)):
        both = [draw.normal(num_tokens, size, dtype=dtype) for _ in "ab"]
        gate_T1 = draw.normal(num_tokens, 1, dtype=dtype)
        what = f"{num_tokens} tokens of {size}"
        yield Case(label=what, spec=spec, args=(*both, None), writes=frozenset({0}))
        yield Case(label=f"{what}, gated", spec=spec, args=(*both, gate_T1), writes=frozenset({0}))
    wide = draw.normal(6, 100, dtype=dtype)
    args = (draw.normal(6, 40, dtype=dtype), wide[:, 30:70], wide[:, 99:])
    yield Case(label="columns of a wider tensor", spec=spec, args=args, writes=frozenset({0}))
    padded = draw.normal(6, 40, dtype=dtype)
    padded[4:] = torch.nan
    args = (padded, padded.clone(), None)
    yield Case(label="padding", spec=spec, args=args, writes=frozenset({0}), num_real=4)


def _mixed_experts(draw: Draw, num_tokens: int, num_experts: int, k: int) -> Tensor:
    """Return k different numbers a token, of as many again as there are experts. int32. [T, k]"""
    order = torch.rand(num_tokens, 2 * num_experts, generator=draw.generator).argsort(dim=1)
    return order[:, :k].to(torch.int32).to(draw.device)


def drop_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, and rows that go nowhere."""
    draw, spec = bench.draw(), bench.spec({})
    for num_tokens, num_experts, k in ((1, 4, 2), (17, 60, 3), (1030, 512, 12)):
        experts_Tk = _mixed_experts(draw, num_tokens, num_experts, k)
        experts_Tk[-1:, -1] = NO_EXPERT
        what = f"{num_tokens} tokens, {k} of {num_experts} experts"
        kwargs = {"num_experts": num_experts}
        yield Case(label=what, spec=spec, args=(experts_Tk,), kwargs=kwargs)


def identity_cases(bench: Bench) -> Iterator[Case]:
    """Yield sizes, tokens that chose no expert with matrices, views and padding."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, size, num_experts, k in ((1, 64, 4, 2), (33, 40, 6, 2), (5, 6144, 512, 12)):
        experts_Tk = _mixed_experts(draw, num_tokens, num_experts, k)
        routed_TD = draw.normal(num_tokens, size, dtype=dtype)
        routed_TD[(experts_Tk >= num_experts).all(dim=1)] = torch.nan
        wide_TD = draw.normal(num_tokens, size + 8, dtype=dtype)
        yield Case(
            label=f"{num_tokens} tokens of {size}, {k} of {num_experts} experts",
            spec=spec,
            args=(routed_TD, wide_TD[:, 8:], draw.uniform(num_tokens, k), experts_Tk),
            kwargs={"num_experts": num_experts},
            writes=frozenset({0}),
        )
    none = torch.full((6, 2), 9, dtype=torch.int32, device=draw.device)
    none[4:] = NO_EXPERT
    padded = draw.normal(6, 40, dtype=dtype)
    padded[4:] = torch.nan
    yield Case(
        label="none with matrices, and padding",
        spec=spec,
        args=(torch.full_like(padded, torch.nan), padded, draw.uniform(6, 2), none),
        kwargs={"num_experts": 4},
        writes=frozenset({0}),
        num_real=4,
    )
