"""Norms, activations, rotation and routing, got wrong."""

from __future__ import annotations

import torch

from headstock_mutants.attention import NEIGHBOURS, WAITS
from headstock_mutants.mutation import Changed, of_op


@of_op("rms_norm")
def the_epsilon_is_tenfold(run):
    return lambda x_TD, weight_D, *, eps: run(x_TD, weight_D, eps=10 * eps)


@of_op("rms_norm")
def the_norm_takes_off_the_mean(run):
    return lambda x_TD, weight_D, *, eps: run(
        x_TD - 0.01 * x_TD.mean(-1, keepdim=True), weight_D, eps=eps
    )


@of_op("rms_norm")
def the_norm_works_in_place(run):
    return lambda x_TD, weight_D, *, eps: x_TD.copy_(run(x_TD, weight_D, eps=eps))


@of_op("rms_norm")
def the_norm_forgets_rows_past_a_thousand(run):
    def mutated(x_TD, weight_D, *, eps):
        out = run(x_TD, weight_D, eps=eps)
        out[1000:] = 0
        return out

    return mutated


@of_op("rms_norm")
def the_norm_ignores_strides(run):
    def mutated(x_TD, weight_D, *, eps):
        flat = torch.as_strided(x_TD, x_TD.shape, x_TD.contiguous().stride())
        return run(flat, weight_D, eps=eps)

    return mutated


@of_op("rms_norm", NEIGHBOURS.format("rms_norm"))
def the_norm_hears_its_neighbours_a_little(run):
    return lambda x_TD, weight_D, *, eps: (
        run(x_TD, weight_D, eps=eps) * (1 + 3e-6 * x_TD.nan_to_num().mean())
    )


@of_op("rms_norm", WAITS.format("rms_norm"))
def the_norm_looks_for_not_a_numbers(run):
    def mutated(x_TD, weight_D, *, eps):
        assert bool(x_TD.isnan().any()) or True
        return run(x_TD, weight_D, eps=eps)

    return mutated


@of_op("add_rms_norm")
def the_sum_is_not_returned(run):
    def mutated(x_TD, residual_TD, weight_D, *, eps):
        out, _ = run(x_TD, residual_TD.clone(), weight_D, eps=eps)
        return out, residual_TD

    return mutated


@of_op("layer_norm")
def the_shift_is_left_out(run):
    return lambda x_TD, weight_D, bias_D, *, eps: run(x_TD, weight_D, None, eps=eps)


@of_op("silu_and_mul")
def gelu_stands_for_silu(run):
    def mutated(gate_up_TG, *, activation=None):
        from headstock.ops.activation_kinds import GELU_TANH, SILU

        activation = activation or SILU
        return run(gate_up_TG, activation=GELU_TANH if activation == SILU else activation)

    return mutated


@of_op("silu_and_mul")
def limits_are_ignored(run):
    def mutated(gate_up_TG, *, activation=None):
        from headstock.ops.activation_kinds import SILU, clipped_swiglu

        activation = activation or SILU
        if activation.kind == "clipped-swiglu":
            activation = clipped_swiglu(1e6, 1.702)
        return run(gate_up_TG, activation=activation)

    return mutated


def prepares(**changes):
    def mutation(run):
        def mutated(qkv_TC, cos_sin_LC, q_norm_D, k_norm_D, kv, batch, **more):
            given = {
                "qkv_TC": qkv_TC,
                "cos_sin_LC": cos_sin_LC,
                "q_norm_D": q_norm_D,
                "k_norm_D": k_norm_D,
                "kv": kv,
                "batch": batch,
                **more,
            }
            return run(**(given | {name: make(given) for name, make in changes.items()}))

        return mutated

    return mutation


@of_op("rotate_and_write")
def pairs_are_always_halves(run):
    return prepares(is_interleaved=lambda given: False)(run)


@of_op("rotate_and_write")
def keys_are_not_normed(run):
    return prepares(k_norm_D=lambda given: None)(run)


@of_op("rotate_and_write")
def positions_are_one_off(run):
    return prepares(
        cos_sin_LC=lambda given: (
            None if given["cos_sin_LC"] is None else given["cos_sin_LC"].roll(1, 0)
        )
    )(run)


@of_op("route_topk")
def ties_go_to_the_last_expert(run):
    def mutated(logits_TE, *, k, is_normalized):
        weights, ids = run(logits_TE.flip(1), k=k, is_normalized=is_normalized)
        return weights, (logits_TE.shape[1] - 1 - ids).to(ids.dtype)

    return mutated


@of_op("route_topk")
def shares_never_add_up_to_one(run):
    return lambda logits_TE, *, k, is_normalized: run(logits_TE, k=k, is_normalized=False)


@of_op("soft_cap")
def logits_have_no_cap(run):
    def mutated(*args, **kwargs):
        return args[0]

    return mutated


@of_op("embed_places")
def places_are_one_off(run):
    def mutated(*args, **kwargs):
        return run(*args, **kwargs).roll(1, 0)

    return mutated


SERVED = "7_engine::requests_served_together_get_the_tokens_of_each_alone[llama]"


@of_op("model_step", SERVED)
def whole_steps_mix_up_rows(build):
    def mutated(spec, device):
        right = build(spec, device)
        return Changed(right, run=lambda ids_T, batch: right.run(ids_T, batch).roll(1, 0))

    return mutated


@of_op("model_step", SERVED)
def whole_steps_forget_what_they_wrote(build):
    def mutated(spec, device):
        right = build(spec, device)

        def run(ids_T, batch):
            hidden_TD = right.run(ids_T, batch)
            for layer in spec.layers:
                layer.kv.zero_()
            return hidden_TD

        return Changed(right, run=run)

    return mutated
