"""Ops round the model, masks, drafts, adapters, media and draws, got wrong."""

from __future__ import annotations

from dataclasses import replace

import torch

from headstock_mutants.attention import NEIGHBOURS, WAITS
from headstock_mutants.mutation import of_op


@of_op("place_step", quick=True)
def place_uses_the_first_groups_table(run):
    def mutated(slots, inputs, ids_T, batch):
        widths = [table.shape[1] for table in slots.tables]
        first = slots.tables[0]
        tables = tuple(first[:, torch.arange(width) % first.shape[1]] for width in widths)
        return run(replace(slots, tables=tables), inputs, ids_T, batch)

    return mutated


@of_op("place_step")
def place_reads_no_drafts(run):
    return lambda slots, inputs, ids_T, batch: run(
        slots, replace(inputs, host_ids_T=inputs.host_ids_T.clamp(min=-1)), ids_T, batch
    )


@of_op("place_step")
def place_gives_rows_each_others_adapters(run):
    return lambda slots, inputs, ids_T, batch: run(
        replace(slots, adapters_S=slots.adapters_S.roll(1)), inputs, ids_T, batch
    )


@of_op("place_step")
def place_writes_for_done_rows(run):
    return lambda slots, inputs, ids_T, batch: run(
        replace(slots, done_S=torch.zeros_like(slots.done_S)), inputs, ids_T, batch
    )


@of_op("advance_lengths")
def done_rows_grow(run):
    return lambda slots, inputs, batch: run(
        replace(slots, done_S=torch.zeros_like(slots.done_S)), inputs, batch
    )


@of_op("advance_lengths", quick=True)
def lengths_come_back_as_another_tensor(run):
    def mutated(slots, inputs, batch):
        slots = replace(slots, lengths_S=slots.lengths_S.clone())
        return run(slots, inputs, batch)

    return mutated


@of_op("accept_drafts", quick=True)
def one_draft_too_many_is_accepted(run):
    def mutated(drawn_RJ, drafts_RK, num_draws_R):
        accepted_R = run(drawn_RJ, drafts_RK, num_draws_R)
        return torch.minimum(accepted_R + 1, num_draws_R)

    return mutated


@of_op("accept_drafts")
def drafts_are_accepted_past_a_wrong_one(run):
    def mutated(drawn_RJ, drafts_RK, num_draws_R):
        steps_K = torch.arange(drafts_RK.shape[1])
        is_right_RK = (drawn_RJ[:, :-1] == drafts_RK) & (steps_K < num_draws_R[:, None] - 1)
        return 1 + is_right_RK.sum(1).to(torch.int32)

    return mutated


@of_op("accept_drafts")
def drafts_of_rows_that_draw_once_are_accepted(run):
    return lambda drawn_RJ, drafts_RK, num_draws_R: run(
        drawn_RJ, drafts_RK, torch.full_like(num_draws_R, drawn_RJ.shape[1])
    )


@of_op("settle_step")
def stop_ids_do_not_stop(run):
    return lambda drawn, accepted, slots, inputs, outbox: run(
        drawn, accepted, replace(slots, stop_ids_SE=slots.stop_ids_SE * 0 - 1), inputs, outbox
    )


@of_op("settle_step")
def wrong_drafts_stay_in_the_lengths(run):
    def mutated(drawn_RJ, accepted_R, slots, inputs, outbox_NRO):
        before = slots.lengths_S.clone()
        after, outbox = run(drawn_RJ, accepted_R, slots, inputs, outbox_NRO)
        after.lengths_S.copy_(before)
        return after, outbox

    return mutated


@of_op("settle_step")
def rows_draw_past_their_last_output(run):
    return lambda drawn, accepted, slots, inputs, outbox: run(
        drawn, accepted, replace(slots, max_outputs_S=slots.max_outputs_S + 2), inputs, outbox
    )


@of_op("apply_masks", quick=True)
def masks_are_shifted_by_one(run):
    return lambda logits_RV, words_RW: run(logits_RV.roll(-1, 1), words_RW).roll(1, 1)


@of_op("apply_masks")
def masks_lose_their_sign_bit(run):
    return lambda logits_RV, words_RW: run(logits_RV, words_RW & 0x7FFFFFFF)


@of_op("apply_masks")
def rows_have_each_others_masks(run):
    return lambda logits_RV, words_RW: run(logits_RV, words_RW.roll(1, 0))


@of_op("add_lora", quick=True)
def tokens_have_each_others_adapters(run):
    def mutated(out_TO, x_TI, down_NKI, up_NOR, adapters_T, *, starts):
        return run(out_TO, x_TI, down_NKI, up_NOR, adapters_T.roll(1), starts=starts)

    return mutated


@of_op("add_lora")
def adapters_are_numbered_from_zero(run):
    def mutated(out_TO, x_TI, down_NKI, up_NOR, adapters_T, *, starts):
        shifted_T = torch.where(adapters_T > 1, adapters_T - 1, adapters_T)
        return run(out_TO, x_TI, down_NKI, up_NOR, shifted_T, starts=starts)

    return mutated


@of_op("add_lora")
def every_part_has_the_first_ones_ranks(run):
    def mutated(out_TO, x_TI, down_NKI, up_NOR, adapters_T, *, starts):
        rank = up_NOR.shape[2]
        same_NKI = down_NKI[:, :rank].repeat(1, len(starts), 1)
        return run(out_TO, x_TI, same_NKI, up_NOR, adapters_T, starts=starts)

    return mutated


@of_op("place_features", quick=True)
def media_are_one_position_off(run):
    return lambda x_TD, features_MF, rows_T: run(x_TD, features_MF, rows_T.roll(1))


@of_op("add_placed")
def deeper_features_come_from_the_front(run):
    return lambda x_TD, features_MF, rows_T, *, offset: run(x_TD, features_MF, rows_T, offset=0)


@of_op("axis_angles")
def axes_are_mixed_up(run):
    return lambda table_LC, shifts_AT, axis_F, positions_T: run(
        table_LC, shifts_AT.roll(1, 0), axis_F, positions_T
    )


@of_op("spread_draws")
def every_draw_has_the_first_ones_index(run):
    def mutated(slots_R, num_outputs_S, *, num_draws):
        slots, _ = run(slots_R, num_outputs_S, num_draws=num_draws)
        return slots, num_outputs_S.index_select(0, slots)

    return mutated


@of_op("take_draws")
def rows_draw_from_their_first_positions(run):
    def mutated(x_TD, query_starts_R1, num_draws_R, *, num_draws):
        queries_R = query_starts_R1[1:] - query_starts_R1[:-1]
        return run(x_TD, query_starts_R1, queries_R, num_draws=num_draws)

    return mutated


@of_op("argmax_tokens")
def the_last_of_equals_wins(run):
    def mutated(logits_SV):
        return logits_SV.shape[1] - 1 - logits_SV.flip(1).argmax(dim=-1)

    return mutated


def draws(change):
    def mutation(run):
        def mutated(logits_SV, temperature_S, top_k_S, top_p_S, min_p_S, seeds_S, indexes_S):
            given = {
                "temperature_S": temperature_S,
                "top_k_S": top_k_S,
                "top_p_S": top_p_S,
                "min_p_S": min_p_S,
                "seeds_S": seeds_S,
                "indexes_S": indexes_S,
            }
            return run(logits_SV, **(given | change(given)))

        return mutated

    return mutation


@of_op("draw_tokens")
def rows_draw_with_each_others_seeds(run):
    return draws(lambda given: {"seeds_S": given["seeds_S"].roll(1)})(run)


@of_op("draw_tokens")
def draws_ignore_which_output_it_is(run):
    return draws(lambda given: {"indexes_S": given["indexes_S"] * 0})(run)


@of_op("draw_tokens")
def draws_ignore_top_p(run):
    return draws(lambda given: {"top_p_S": given["top_p_S"] * 0 + 1})(run)


@of_op("draw_tokens")
def draws_ignore_top_k(run):
    return draws(lambda given: {"top_k_S": given["top_k_S"] * 0 - 1})(run)


@of_op("draw_tokens")
def draws_ignore_min_p(run):
    return draws(lambda given: {"min_p_S": given["min_p_S"] * 0})(run)


@of_op("token_logprobs")
def logprobs_are_in_bits(run):
    def mutated(logits_SV, ids_S, asked_SB, *, k):
        chosen, top, ids, asked = run(logits_SV, ids_S, asked_SB, k=k)
        return chosen * 1.4427, top * 1.4427, ids, asked * 1.4427

    return mutated


@of_op("apply_penalties")
def prompts_are_not_penalised(run):
    def mutated(logits, counts, prompt_mask_SV, repetition, frequency, presence):
        return run(logits, counts, prompt_mask_SV & False, repetition, frequency, presence)

    return mutated


@of_op("mark_faults")
def faults_pass(run):
    return lambda drawn_R, logits_RV: drawn_R


@of_op("count_outputs")
def faults_count(run):
    return lambda drawn_R, slots_R, done_S, output_counts_SV: run(
        drawn_R.clamp(min=0), slots_R, done_S, output_counts_SV
    )


@of_op("forbid_stops")
def stops_are_never_forbidden(run):
    return lambda logits_RV, stop_ids_RE, num_outputs_R, min_outputs_R: logits_RV


@of_op("pool_rows")
def pooled_rows_are_the_next_ones(run):
    def mutated(*args, **kwargs):
        return run(*args, **kwargs).roll(1, 0)

    return mutated


@of_op("take_rows", WAITS.format("take_rows"))
def rows_are_taken_on_the_host(run):
    return lambda x, index_R, *, dim: run(
        x, torch.tensor(index_R.tolist(), dtype=index_R.dtype), dim=dim
    )


@of_op("apply_penalties", NEIGHBOURS.format("apply_penalties"))
def penalties_are_those_of_the_whole_batch(run):
    def mutated(logits, counts, prompt_mask, repetition_S, frequency, presence):
        logits = run(logits, counts, prompt_mask, repetition_S, frequency, presence)
        return logits + 1e-6 * logits.nan_to_num(neginf=0).mean()

    return mutated


@of_op("span_attention")
def tokens_of_an_image_see_those_before_them_alone(run):
    def mutated(out_THD, *rest, spans, **named):
        ones = [
            replace(s, token=s.token + n, count=1, end=s.end - s.count + n + 1)
            for s in spans
            for n in range(s.count)
        ]
        return run(out_THD, *rest, spans=ones, **named)

    return mutated


@of_op("mean_of_patches")
def the_first_patch_stands_for_all(run):
    return lambda x_ND, *, count: x_ND[::count]


@of_op("mix_patches")
def the_first_patch_stands_for_its_neighbours(run):
    return lambda x_ND, rows_MB, weights_MB: x_ND[rows_MB[:, 0]]


@of_op("put_before_runs")
def a_row_stands_behind_each_run(run):
    return lambda x_ND, row_D, *, lengths: run(x_ND.flip(0), row_D, lengths=lengths[::-1]).flip(0)


@of_op("leave_out_first")
def the_last_row_is_left_out(run):
    return lambda x_ND, *, lengths: run(x_ND.flip(0), lengths=lengths[::-1]).flip(0)


@of_op("take_patches")
def patches_come_in_the_order_that_they_had(run):
    return lambda x_ND, rows_M: run(x_ND, rows_M.sort().values)


@of_op("lay_out_patches")
def patches_lie_column_by_column(run):
    def mutated(x_NP, *, height, width, channels):
        return run(x_NP, height=width, width=height, channels=channels)

    return mutated


@of_op("convolve")
def what_is_around_is_all_before_the_map(run):
    def mutated(x_NC, kernel_OGKK, bias_O, *, height, width, stride):
        maps = x_NC.unflatten(0, (-1, height, width))
        size = kernel_OGKK.shape[2]
        moved = maps.roll((0, 0) if size == 1 else (1, 1), (1, 2)).flatten(0, 2)
        return run(moved, kernel_OGKK, bias_O, height=height, width=width, stride=stride)

    return mutated


@of_op("attend_to_maps")
def all_maps_are_one(run):
    return lambda *qkv, num_maps, num_heads: run(*qkv, num_maps=1, num_heads=num_heads)


@of_op("put_rows")
def the_first_row_stands_for_others(run):
    return lambda x_TD, ids_T, rows_KD, *, first: run(x_TD, ids_T, rows_KD[:1], first=first)
