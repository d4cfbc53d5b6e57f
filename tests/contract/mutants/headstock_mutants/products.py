"""Matrix products, lookups and experts, got wrong."""

from __future__ import annotations

from dataclasses import replace

import torch

from headstock_mutants.attention import NEIGHBOURS, WAITS
from headstock_mutants.mutation import Product, built, of_op

LINEAR, EXPERTS = "linear", "experts"


def multiply(change):
    """Change what a product returns: ``change(out, x, spec)``."""
    return built(multiply=lambda right, spec: lambda x: change(right(x), x, spec))


def loading(change):
    """Change what is loaded: ``change(part, spec)``."""
    return built(
        load=lambda right, spec: lambda part, row: right.load(dict(change(dict(part), spec)), row)
    )


def rows_of(x):
    return x if isinstance(x, torch.Tensor) else x.values_MI


@of_op(LINEAR, quick=True)
def product_is_zero_past_4096_inputs(build):
    return multiply(lambda out, x, spec: out * (spec.in_features <= 4096))(build)


@of_op(LINEAR, quick=True)
def product_is_zero_past_1000_rows(build):
    def change(out, x, spec):
        out[1000:] = 0
        return out

    return multiply(change)(build)


@of_op(LINEAR)
def product_is_zero_past_8192_rows(build):
    def change(out, x, spec):
        out[8192:] = 0
        return out

    return multiply(change)(build)


@of_op(LINEAR)
def product_is_zero_past_32768_outputs(build):
    def change(out, x, spec):
        out[:, 32768:] = 0
        return out

    return multiply(change)(build)


@of_op(LINEAR, quick=True)
def int8_scales_are_a_hundredth_off(build):
    def change(part, spec):
        return part | {"scale": part["scale"] * 1.01} if spec.layout == "int8-group" else part

    return loading(change)(build)


@of_op(LINEAR)
def int4_scales_are_a_hundredth_off(build):
    def change(part, spec):
        return part | {"scale": part["scale"] * 1.01} if spec.layout == "int4-group" else part

    return loading(change)(build)


@of_op(LINEAR)
def fp8_scales_are_a_hundredth_off(build):
    def change(part, spec):
        return part | {"scale": part["scale"] * 0.99} if spec.layout == "fp8-group" else part

    return loading(change)(build)


@of_op(LINEAR)
def mxfp4_scales_are_a_hundredth_off(build):
    def change(part, spec):
        return part | {"scale": part["scale"] * 1.01} if spec.layout == "mxfp4" else part

    return loading(change)(build)


@of_op(LINEAR)
def int4_minima_are_left_out(build):
    def change(part, spec):
        return part | {"minimum": part["minimum"] * 0} if "minimum" in part else part

    return loading(change)(build)


@of_op(LINEAR)
def int4_nibbles_are_swapped(build):
    def change(part, spec):
        if spec.layout != "int4-group":
            return part
        byte = part["weight"]
        return part | {"weight": (byte << 4) | (byte >> 4)}

    return loading(change)(build)


@of_op(LINEAR)
def the_first_group_scales_all(build):
    def change(part, spec):
        if "scale" not in part:
            return part
        scale = part["scale"]
        return part | {"scale": scale[:, :1].expand_as(scale).contiguous()}

    return loading(change)(build)


@of_op(LINEAR, quick=True)
def load_keeps_what_it_was_given(build):
    def mutated(spec, device):
        right, kept = build(spec, device), {}

        def load(part, row):
            kept[row] = part

        def multiply(x):
            for row, part in kept.items():
                right.load(part, row)
            return right(x)

        return Product(right, load=load, multiply=multiply)

    return mutated


@of_op(LINEAR, quick=True)
def load_moves_the_storage(build):
    def mutated(spec, device):
        right = build(spec, device)

        def load(part, row):
            right.load(part, row)
            for name, value in vars(right).items():
                if isinstance(value, torch.Tensor):
                    setattr(right, name, value.clone())
            held = getattr(right, "parts", {})
            held.update({name: value.clone() for name, value in held.items()})

        return Product(right, load=load)

    return mutated


@of_op(LINEAR)
def load_ignores_the_first_row(build):
    return built(load=lambda right, spec: lambda part, row: right.load(part, 0))(build)


@of_op(LINEAR)
def the_bias_is_left_out(build):
    return built(
        load_bias=lambda right, spec: lambda bias, begin: right.load_bias(bias * 0, begin)
    )(build)


@of_op(LINEAR)
def the_bias_is_added_twice(build):
    return built(
        load_bias=lambda right, spec: lambda bias, begin: right.load_bias(bias * 2, begin)
    )(build)


@of_op(LINEAR)
def gate_and_up_are_swapped(build):
    def change(out, x, spec):
        return out.roll(1, 1) if spec.is_gated else out

    return multiply(change)(build)


@of_op(LINEAR)
def products_are_rounded_to_bfloat16(build):
    return multiply(lambda out, x, spec: out.bfloat16().to(out.dtype))(build)


@of_op(LINEAR)
def lookups_are_one_row_off(build):
    return built(rows=lambda right, spec: lambda ids, first: right.rows(ids + 1, first))(build)


@of_op(LINEAR)
def lookups_of_other_ranks_give_a_row(build):
    def rows(right, spec):
        def mutated(ids, first):
            return right.rows(ids.clamp(first, first + spec.out_features - 1), first)

        return mutated

    return built(rows=rows)(build)


@of_op(LINEAR)
def lookups_are_not_scaled(build):
    def rows(right, spec):
        return lambda ids, first: right.rows(ids, first) / spec.row_scale

    return built(rows=rows)(build)


@of_op(LINEAR, NEIGHBOURS.format(LINEAR), quick=True)
def product_hears_its_neighbours_a_little(build):
    return multiply(lambda out, x, spec: out + 3e-6 * out.mean())(build)


@of_op(LINEAR, NEIGHBOURS.format(LINEAR))
def product_quantises_by_the_largest_input_of_all_rows(build):
    def change(out, x, spec):
        step = rows_of(x).float().abs().max() * 2e-7
        return (out / step).round() * step

    return multiply(change)(build)


@of_op(LINEAR, WAITS.format(LINEAR), quick=True)
def product_looks_at_a_number(build):
    return multiply(lambda out, x, spec: out * (1 if out.flatten()[0].item() != 1e9 else 0))(build)


@of_op(LINEAR, WAITS.format(LINEAR))
def product_branches_on_zeros(build):
    def change(out, x, spec):
        return out if rows_of(x).float().abs().sum() > 0 else out * 0

    return multiply(change)(build)


def mixture(change):
    """Change what experts return: ``change(out, x)``."""

    def mutation(build):
        def mutated(spec, device):
            right = build(spec, device)
            return Product(right, multiply=lambda x, w, e: change(right, x, w, e))

        return mutated

    return mutation


@of_op(EXPERTS)
def experts_are_not_weighed(build):
    return mixture(lambda right, x, w, e: right(x, w * 0 + 0.5, e))(build)


@of_op(EXPERTS)
def experts_drop_the_last_choice(build):
    return mixture(lambda right, x, w, e: right(x, torch.cat((w[:, :-1], w[:, -1:] * 0), 1), e))(
        build
    )


@of_op(EXPERTS)
def experts_have_room_for_64_tokens(build):
    def change(right, x, w, e):
        rank_Tk = torch.zeros_like(e)
        for expert in range(int(e.max()) + 1):
            is_here = (e == expert).int()
            rank_Tk += (is_here.flatten().cumsum(0).view_as(e) - 1) * is_here
        return right(x, w * (rank_Tk < 64), e)

    return mixture(change)(build)


@of_op(EXPERTS)
def experts_leave_out_tokens_past_a_thousand(build):
    def change(right, x, w, e):
        out = right(x, w, e)
        out[1000:] = 0
        return out

    return mixture(change)(build)


@of_op(EXPERTS, NEIGHBOURS.format(EXPERTS))
def experts_hear_other_tokens_a_little(build):
    def change(right, x, w, e):
        out = right(x, w, e)
        return out + 3e-6 * out.nan_to_num().mean()

    return mixture(change)(build)


@of_op(EXPERTS, WAITS.format(EXPERTS))
def experts_count_their_tokens_on_the_host(build):
    def change(right, x, w, e):
        return right(x, w, e) * (len(torch.nonzero(e >= 0)) >= 0)

    return mixture(change)(build)


@of_op(EXPERTS)
def experts_ignore_their_biases(build):
    def mutated(spec, device):
        right = build(spec, device)

        def load_bias(bias, *place):
            right.load_bias(bias * 0, *place)

        return Product(right, load_bias=load_bias)

    return mutated


@of_op(EXPERTS)
def experts_gate_with_silu_alone(build):
    from headstock.ops.activation_kinds import SILU

    return lambda spec, device: build(replace(spec, activation=SILU), device)
