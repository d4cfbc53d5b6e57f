// What surrounds the model in a step: from the slot table to its inputs, from drawn ids back.
// Exact integer work, little of it; the ops of `headstock.ops.steps` say what each means.
#include "kernels.h"
#include "numbers.h"

namespace headstock {
namespace {

constexpr int32_t kFaulty = -1;
constexpr int32_t kWasDone = -2;

int64_t index_at(const TakeArgs& args, int64_t i) {
    return args.shift + (args.index_bytes == 4 ? static_cast<const int32_t*>(args.index)[i]
                                               : static_cast<const int64_t*>(args.index)[i]);
}

void run_take(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const TakeArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t i = chunk * kRowsPerChunk; i < last; ++i)
        std::memcpy(args.y + i * args.y_stride, args.x + index_at(args, i) * args.x_stride,
                    static_cast<size_t>(args.bytes));
}

void run_copy(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const CopyArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t i = chunk * kRowsPerChunk; i < last; ++i)
        std::memcpy(args.y + i * args.y_stride, args.x + i * args.x_stride,
                    static_cast<size_t>(args.bytes));
}

// One token of a row: `offset` within the row; null tokens go to page 0.
void place_token(const PlaceArgs& args, int64_t token, int64_t row, int64_t offset, bool is_live) {
    const int64_t slot = args.slots[row];
    const int64_t place = is_live ? args.lengths[slot] + offset : 0;
    const int64_t page = args.slot_pages[slot * args.slot_pages_stride + place / args.page_size];
    const int32_t id = args.host_ids[token];
    args.ids[token] = id < 0 ? args.last_ids[slot] : id;
    args.positions[token] = place;
    args.row_of_token[token] = static_cast<int32_t>(row);
    args.write_slots[token] = is_live ? page * args.page_size + place % args.page_size : 0;
}

void place_row(const PlaceArgs& args, int64_t row) {
    const int64_t begin = args.query_starts[row], end = args.query_starts[row + 1];
    const int64_t slot = args.slots[row];
    const bool is_live = args.done[slot] == 0;
    const int32_t length = args.lengths[slot];
    args.kv_lengths[row] =
        is_live ? length + static_cast<int32_t>(end - begin) : (length > 1 ? length : 1);
    for (int64_t token = begin; token < end; ++token)
        place_token(args, token, row, token - begin, is_live);
    std::memcpy(args.row_pages + row * args.row_pages_stride,
                args.slot_pages + slot * args.slot_pages_stride,
                static_cast<size_t>(args.num_pages) * sizeof(int32_t));
    if (row == args.rows - 1)  // Tokens past the last row are padding of it.
        for (int64_t token = end; token < args.tokens; ++token)
            place_token(args, token, row, 0, false);
}

void run_place(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const PlaceArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) place_row(args, row);
}

void run_advance(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const AdvanceArgs*>(untyped);
    for (int64_t row = 0; row < args.rows; ++row) {
        const int32_t slot = args.slots[row];
        if (args.done[slot] == 0) args.lengths[slot] = args.kv_lengths[row];
    }
}

bool is_stop(const SettleArgs& args, int64_t slot, int64_t id) {
    const int32_t* stops = args.stop_ids + slot * args.num_stops;
    for (int64_t i = 0; i < args.num_stops; ++i)
        if (stops[i] == id) return true;
    return false;
}

// Enters row `row`; what was done before stays as it is.
void settle_row(const SettleArgs& args, int64_t row, int32_t* entry) {
    const int32_t slot = args.slots[row];
    const int64_t id = args.drawn[row];
    if (args.done[slot] != 0) {
        entry[0] = kWasDone;
        entry[1] = 1;
        return;
    }
    args.num_outputs[slot] += 1;
    const bool is_full = args.num_outputs[slot] >= args.max_outputs[slot];
    const bool is_done = id < 0 || is_full || is_stop(args, slot, id);
    if (id >= 0) args.last_ids[slot] = static_cast<int32_t>(id);
    args.done[slot] = is_done;
    entry[0] = static_cast<int32_t>(id);
    entry[1] = is_done;
}

void run_settle(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const SettleArgs*>(untyped);
    int32_t* entry = args.outbox + *args.cursor % args.outbox_size * args.outbox_stride;
    for (int64_t row = 0; row < args.rows; ++row) settle_row(args, row, entry + 2 * row);
    *args.cursor += 1;
}

void run_count(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const CountArgs*>(untyped);
    for (int64_t row = 0; row < args.rows; ++row) {
        const int32_t slot = args.slots[row];
        if (args.done[slot] == 0 && args.drawn[row] >= 0)
            args.counts[slot * args.stride + args.drawn[row]] += 1;
    }
}

void run_mark(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const MarkArgs*>(untyped);
    for (int64_t row = 0; row < args.rows; ++row) {
        const float logit = args.logits[row * args.stride + args.drawn[row]];
        args.marked[row] = std::isfinite(logit) ? args.drawn[row] : kFaulty;
    }
}

void run_forbid(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const ForbidArgs*>(untyped);
    for (int64_t row = 0; row < args.rows; ++row) {
        if (args.num_outputs[row] >= args.min_outputs[row]) continue;
        for (int64_t i = 0; i < args.num_stops; ++i) {
            const int32_t id = args.stop_ids[row * args.num_stops + i];
            if (id >= 0) args.logits[row * args.stride + id] = -INFINITY;
        }
    }
}

void run_bias(const void* untyped, int64_t row, const Worker&) {
    const auto& args = *static_cast<const BiasArgs*>(untyped);
    float* logits = args.logits + row * args.stride;
    for (int64_t i = 0; i < args.num_biases; ++i)
        logits[args.ids[row * args.num_biases + i]] += args.biases[row * args.num_biases + i];
}

}  // namespace

void plan_take(const int64_t* args, PhaseList& list) {
    list.add_rows(run_take, args, as<TakeArgs>(args).rows, kRowsPerChunk);
}

void plan_copy(const int64_t* args, PhaseList& list) {
    list.add_rows(run_copy, args, as<CopyArgs>(args).rows, kRowsPerChunk);
}

void plan_place(const int64_t* args, PhaseList& list) {
    list.add_rows(run_place, args, as<PlaceArgs>(args).rows, kRowsPerChunk);
}

void plan_advance(const int64_t* args, PhaseList& list) { list.add(run_advance, args, 1); }
void plan_settle(const int64_t* args, PhaseList& list) { list.add(run_settle, args, 1); }
void plan_count(const int64_t* args, PhaseList& list) { list.add(run_count, args, 1); }
void plan_mark(const int64_t* args, PhaseList& list) { list.add(run_mark, args, 1); }
void plan_forbid(const int64_t* args, PhaseList& list) { list.add(run_forbid, args, 1); }

void plan_bias(const int64_t* args, PhaseList& list) {
    list.add(run_bias, args, as<BiasArgs>(args).rows);
}

}  // namespace headstock
