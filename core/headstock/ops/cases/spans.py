"""Cases of the op ``span_attention``: images in steps of several rows, checked in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.attention import (
    BIDIRECTIONAL,
    AttentionSpec,
    StepSpan,
    attention,
    page_format_of,
)
from headstock.ops.cases.attention import WINDOW as WINDOWED
from headstock.ops.cases.attention import (
    AttentionInputs,
    Rows,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.base import Bench, Case
from headstock.ops.cases.batches import make_step

LAID_OUT: Sequence[tuple[str, Rows, Sequence[StepSpan]]] = (
    ("all of a row", [(9, 9)], [StepSpan(0, 9, 0, 9)]),
    ("within a prompt", [(30, 30)], [StepSpan(7, 16, 0, 23)]),
    ("the end of a chunk", [(12, 40)], [StepSpan(4, 8, 0, 40)]),
    (
        "two of a row, and a row that decodes",
        [(1, 20), (40, 45)],
        [StepSpan(3, 9, 1, 16), StepSpan(20, 21, 1, 45)],
    ),
    ("what is left of an image behind a hit", [(5, 21), (1, 3)], [StepSpan(0, 3, 0, 19)]),
    ("one token", [(4, 4)], [StepSpan(2, 1, 0, 3)]),
)


def span_cases(bench: Bench) -> Iterator[Case]:
    """Yield images at the beginning, the middle and the end of chunks, with windows and without."""
    plain = plain_spec(bench.dtype, bench.page_sizes[0])
    shared = replace(plain, num_heads=4, num_kv_heads=1, head_dim=32, scale=0.3)
    for name, spec in (
        ("", plain),
        (", a window of 6", replace(plain, features=WINDOWED, window=6)),
        (", one kv head", shared),
    ):
        for label, rows, spans in LAID_OUT:
            yield _case(bench, label + name, spec, rows, spans)


def _case(
    bench: Bench, label: str, spec: AttentionSpec, rows: Rows, spans: Sequence[StepSpan]
) -> Case:
    """Return the case of one step, whose pages the provider in use has written."""
    where = bench.device.torch_device
    step = make_step(rows, spec.page_size, where, window=spec.window)
    inputs = make_inputs(spec, step, where)
    provider = bench.resolver.resolve(attention, spec.as_spec())(spec, bench.device)

    def call(run: Callable[..., Tensor]) -> Tensor:
        kv = filled_pages(provider, step, inputs, spec.max_tokens)
        newest = [num_queries for num_queries, _ in rows]
        provider.plan(step.batch)
        keys, values = (
            torch.cat([x[-num:] for x, num in zip(of_rows, newest, strict=True)])
            for of_rows in (inputs.k_rows, inputs.v_rows)
        )
        provider.write(keys, values, kv, step.batch)
        return run(
            torch.zeros_like(inputs.q_THD),
            inputs.q_THD,
            kv,
            step.batch,
            spans=spans,
            provider=provider,
            page_size=spec.page_size,
            scale=spec.scale,
            window=spec.window,
        )

    sizes = ("num_heads", "num_kv_heads", "head_dim")
    asked = bench.spec(
        {name: getattr(spec, name) for name in sizes}, page_format=page_format_of(provider).tag
    )
    return Case(
        label=label, spec=asked, call=call, expected=lambda: _expected(spec, rows, inputs, spans)
    )


def _expected(
    spec: AttentionSpec, rows: Rows, inputs: AttentionInputs, spans: Sequence[StepSpan]
) -> Tensor:
    """Attend densely, as if each span's last token were the row's: zeros elsewhere. [T, H, D]"""
    out_THD = torch.zeros_like(inputs.q_THD, dtype=torch.float64)
    for span in spans:
        cut = AttentionInputs(
            q_THD=inputs.q_THD[span.token : span.token + span.count],
            k_rows=[inputs.k_rows[span.row][: span.end]],
            v_rows=[inputs.v_rows[span.row][: span.end]],
            sinks_H=None,
        )
        both = replace(spec, features=spec.features | {BIDIRECTIONAL})
        found = dense_attention(both, [(span.count, span.end)], cut)
        out_THD[span.token : span.token + span.count] = found
    return out_THD
