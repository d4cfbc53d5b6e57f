"""Attention and linear attention, got wrong."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch

from headstock_mutants.mutation import Changed, built, of_op

ATTENTION, LINEAR = "attention", "linear_attention"
WAITS = "9_rules::it_never_waits_for_the_device[{}]"
NEIGHBOURS = "9_rules::a_row_does_not_depend_on_its_neighbours[{}]"


def _is_replayed() -> bool:
    """Whether a captured step is being computed, not an eager one."""
    frames = inspect.stack(0)
    return any(f.function == "replay" and "headstock_acme" in f.filename for f in frames)


def with_spec(change: Any) -> Any:
    return lambda build: lambda spec, device: build(change(spec), device)


def with_batch(change: Any) -> Any:
    """Plan and run on another batch than the one that is given."""

    def method(name: str) -> Any:
        def make(right: Any, spec: Any) -> Any:
            def mutated(*args: Any, **kwargs: Any) -> Any:
                *before, batch = args
                return getattr(right, name)(*before, change(batch, spec), **kwargs)

            return mutated

        return make

    return built(plan=method("plan"), run=method("run"))


@of_op(ATTENTION, quick=True)
def attention_ignores_the_scale(build):
    return with_spec(lambda spec: replace(spec, scale=spec.head_dim**-0.5))(build)


@of_op(ATTENTION, "5_attention::pages_lie_along_one_axis", quick=True)
def pages_have_no_axis_of_their_own(build):
    def flat(right, spec):
        return lambda num_pages: (2, spec.num_kv_heads, num_pages * spec.page_size, spec.head_dim)

    return built(kv_shape=flat)(build)


@of_op(ATTENTION)
def attention_ignores_the_window(build):
    return with_spec(lambda spec: replace(spec, window=spec.window and spec.max_length))(build)


@of_op(ATTENTION)
def attention_sees_one_more_than_the_window(build):
    return with_spec(lambda spec: replace(spec, window=spec.window and spec.window + 1))(build)


@of_op(ATTENTION)
def attention_sees_one_less_than_the_window(build):
    return with_spec(lambda spec: replace(spec, window=spec.window and max(1, spec.window - 1)))(
        build
    )


@of_op(ATTENTION)
def attention_ignores_the_soft_cap(build):
    return with_spec(lambda spec: replace(spec, soft_cap=spec.soft_cap and 1e6))(build)


@of_op(ATTENTION)
def attention_counts_sinks_twice(build):
    def run(right, spec):
        def mutated(q, kv, batch, *, sinks_H=None):
            sinks_H = None if sinks_H is None else sinks_H + 0.6931
            return right.run(q, kv, batch, sinks_H=sinks_H)

        return mutated

    return built(run=run)(build)


@of_op(ATTENTION)
def attention_ignores_sinks(build):
    return built(
        run=lambda right, spec: (
            lambda q, kv, batch, *, sinks_H=None: right.run(
                q, kv, batch, sinks_H=None if sinks_H is None else sinks_H - 100
            )
        )
    )(build)


@of_op(ATTENTION)
def attention_reads_a_neighbours_pages(build):
    return with_batch(
        lambda batch, spec: replace(batch, page_table_RP=batch.page_table_RP.roll(1, 0), groups=())
    )(build)


@of_op(ATTENTION)
def attention_forgets_the_newest_token(build):
    def older(batch, spec):
        positions_T = (batch.positions_T - 1).clamp(min=0)
        lengths_R = (batch.kv_lengths_R - 1).clamp(min=1)
        return replace(batch, positions_T=positions_T, kv_lengths_R=lengths_R, groups=())

    return with_batch(older)(build)


@of_op(ATTENTION)
def attention_mixes_up_heads(build):
    def run(right, spec):
        def mutated(q, kv, batch, *, sinks_H=None):
            groups = q.unflatten(1, (spec.num_kv_heads, -1)).transpose(1, 2).flatten(1, 2)
            return right.run(groups, kv, batch, sinks_H=sinks_H)

        return mutated

    return built(run=run)(build)


@of_op(ATTENTION)
def attention_rounds_to_bfloat16(build):
    return built(
        run=lambda right, spec: lambda q, *a, **k: right.run(q, *a, **k).bfloat16().to(q.dtype)
    )(build)


@of_op(ATTENTION)
def attention_writes_one_slot_further(build):
    def write(right, spec):
        def mutated(k, v, kv, batch):
            slots_T = torch.where(batch.write_slots_T > 0, batch.write_slots_T + 1, 0)
            slots_T = slots_T.clamp(max=batch.write_slots_T.max())
            right.write(k, v, kv, replace(batch, write_slots_T=slots_T, groups=()))

        return mutated

    return built(write=write)(build)


@of_op(ATTENTION)
def attention_stores_values_a_hundredth_off(build):
    return built(
        write=lambda right, spec: lambda k, v, kv, batch: right.write(k, v * 1.01, kv, batch)
    )(build)


@of_op(ATTENTION, "5_attention::writing_leaves_other_slots_alone")
def attention_writes_a_whole_page(build):
    def write(right, spec):
        def mutated(k, v, kv, batch):
            kv.add_(kv == 0)
            right.write(k, v, kv, batch)

        return mutated

    return built(write=write)(build)


@of_op(ATTENTION, "5_attention::what_was_written_is_read_back")
def attention_reads_values_as_keys(build):
    return built(read=lambda right, spec: lambda kv, slots: right.read(kv, slots)[::-1])(build)


@of_op(ATTENTION, "5_attention::layers_share_a_plan")
def attention_uses_up_its_plan(build):
    def mutated(spec, device):
        right, planned = build(spec, device), []

        def plan(batch):
            planned.append(batch)
            right.plan(batch)

        def run(*args, **kwargs):
            out = right.run(*args, **kwargs)
            is_planned = bool(planned)
            planned.clear()
            return out if is_planned else torch.zeros_like(out)

        return Changed(right, plan=plan, run=run)

    return mutated


@of_op(ATTENTION, "5_attention::one_provider_attends_over_steps_of_any_shape")
def attention_keeps_the_first_plan(build):
    def mutated(spec, device):
        right, first = build(spec, device), []

        def run(q, kv, batch, *, sinks_H=None):
            first.append(batch.max_kv)
            shorter = batch.kv_lengths_R.clamp(max=first[0])
            positions_T = batch.positions_T.clamp(max=first[0] - 1)
            batch = replace(batch, kv_lengths_R=shorter, positions_T=positions_T, groups=())
            return right.run(q, kv, batch, sinks_H=sinks_H)

        return Changed(right, run=run)

    return mutated


@of_op(ATTENTION, "6_graphs::replays_equal_eager_runs_of_attention_over_growing_rows", quick=True)
def attention_bakes_a_bound_into_a_captured_step(build):
    def mutated(spec, device):
        right, bounds = build(spec, device), []

        def run(q, kv, batch, *, sinks_H=None):
            if _is_replayed():
                bounds.append(min(64, int(batch.kv_lengths_R.max())))
                positions_T = batch.positions_T.clamp(max=max(bounds[0], 64) - 1)
                batch = replace(batch, positions_T=positions_T, groups=())
            return right.run(q, kv, batch, sinks_H=sinks_H)

        return Changed(right, run=run)

    return mutated


@of_op(ATTENTION)
def attention_sees_a_thousand_tokens_at_most(build):
    def nearer(batch, spec):
        lengths_R = batch.kv_lengths_R.clamp(max=1024)
        positions_T = batch.positions_T.clamp(max=1023)
        return replace(batch, kv_lengths_R=lengths_R, positions_T=positions_T, groups=())

    return with_batch(nearer)(build)


@of_op(ATTENTION)
def attention_leaves_out_tokens_past_a_thousand(build):
    def run(right, spec):
        def mutated(q, kv, batch, *, sinks_H=None):
            out = right.run(q, kv, batch, sinks_H=sinks_H)
            out[1000:] = 0
            return out

        return mutated

    return built(run=run)(build)


@of_op(ATTENTION)
def attention_multiplies_what_nothing_was_written_to(build):
    def run(right, spec):
        def mutated(q, kv, batch, *, sinks_H=None):
            out = right.run(q, kv, batch, sinks_H=sinks_H)
            return out + 0 * kv.float().sum().to(out.dtype)

        return mutated

    return built(run=run)(build)


@of_op(ATTENTION, NEIGHBOURS.format(ATTENTION), quick=True)
def attention_hears_its_neighbours_a_little(build):
    def run(right, spec):
        def mutated(q, kv, batch, *, sinks_H=None):
            out = right.run(q, kv, batch, sinks_H=sinks_H)
            return out + 3e-6 * out[: batch.num_tokens].nan_to_num().mean()

        return mutated

    return built(run=run)(build)


@of_op(ATTENTION, WAITS.format(ATTENTION))
def attention_asks_for_the_longest_row(build):
    def run(right, spec):
        def mutated(q, kv, batch, *, sinks_H=None):
            longest = batch.kv_lengths_R.max().item()
            return right.run(q, kv, batch, sinks_H=sinks_H) * (longest > 0)

        return mutated

    return built(run=run)(build)


@of_op(ATTENTION, WAITS.format(ATTENTION))
def attention_plans_with_the_rows_lengths(build):
    def plan(right, spec):
        def mutated(batch):
            assert batch.kv_lengths_R.tolist()
            right.plan(batch)

        return mutated

    return built(plan=plan)(build)


@of_op(ATTENTION)
def attention_looks_ahead_in_no_text(build):
    """Bidirectional attention that is causal."""

    def change(spec):
        return replace(spec, features=spec.features - {"bidirectional"})

    return with_spec(change)(build)


@of_op(LINEAR, quick=True)
def linear_attention_reads_a_neighbours_state(build):
    def rolled(batch, spec):
        table_R2 = batch.page_table_RP.clone()
        table_R2[:, 0] = table_R2[:, 0].roll(1)
        return replace(batch, page_table_RP=table_R2, groups=())

    return with_batch(rolled)(build)


@of_op(LINEAR)
def linear_attention_overwrites_the_state_that_it_read(build):
    def same(batch, spec):
        table_R2 = batch.page_table_RP.clone()
        table_R2[:, 1] = table_R2[:, 0]
        return replace(batch, page_table_RP=table_R2, groups=())

    return with_batch(same)(build)


@of_op(LINEAR)
def linear_attention_begins_with_what_the_page_holds(build):
    def later(batch, spec):
        return replace(
            batch, positions_T=batch.positions_T + 1, kv_lengths_R=batch.kv_lengths_R + 1, groups=()
        )

    return with_batch(later)(build)


@of_op(LINEAR)
def linear_attention_forgets_the_state(build):
    def run(right, spec):
        def mutated(qkv, b, a, weights, kv, batch):
            kv.view(torch.uint8)
            empty = torch.zeros_like(kv)
            out = right.run(qkv, b, a, weights, empty, batch)
            kv.copy_(empty)
            return out

        return mutated

    return built(run=run)(build)


@of_op(LINEAR)
def linear_attention_does_not_decay(build):
    def run(right, spec):
        def mutated(qkv, b, a, weights, kv, batch):
            return right.run(qkv, b, a - 100, weights, kv, batch)

        return mutated

    return built(run=run)(build)


@of_op(LINEAR, NEIGHBOURS.format(LINEAR))
def linear_attention_hears_its_neighbours_a_little(build):
    def run(right, spec):
        def mutated(qkv, b, a, weights, kv, batch):
            out = right.run(qkv, b, a, weights, kv, batch)
            return out + 3e-6 * out.nan_to_num().mean()

        return mutated

    return built(run=run)(build)
