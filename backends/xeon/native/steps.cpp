// What surrounds the model in a step: from the slot table to its inputs, from drawn ids back.
// Exact integer work, little of it; the ops of `headstock.ops.steps` say what each means.
#include "kernels.h"
#include "numbers.h"

namespace headstock {
namespace {

constexpr int32_t kFaulty = -1;
constexpr int32_t kFirstDraft = -2;

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

// What is embedded for `host_id`: itself, the slot's last id or one of its drafts.
int64_t id_of(const PlaceArgs& args, int64_t slot, int32_t host_id) {
    if (host_id >= 0) return host_id;
    if (host_id > kFirstDraft || args.num_drafts == 0) return args.last_ids[slot];
    const int64_t draft = min64(kFirstDraft - host_id, args.num_drafts - 1);
    const int32_t id = args.drafts[slot * args.num_drafts + draft];
    return id < 0 ? 0 : id;
}

// Where the token at `place` of a request is written; 0 in the null page.
int64_t write_slot(const int32_t* pages, int64_t place, int64_t page_size, bool is_live) {
    if (!is_live || page_size == 0) return 0;
    return static_cast<int64_t>(pages[place / page_size]) * page_size + place % page_size;
}

// Copies the pages of a row; states of one that is not live are null.
void place_pages(int32_t* into, const int32_t* pages, int64_t count, bool is_null) {
    if (is_null)
        std::memset(into, 0, static_cast<size_t>(count) * sizeof(int32_t));
    else
        std::memcpy(into, pages, static_cast<size_t>(count) * sizeof(int32_t));
}

// One token of a row: `offset` within the row; null tokens go to page 0.
void place_token(const PlaceArgs& args, int64_t token, int64_t row, int64_t offset, bool is_live) {
    const int64_t slot = args.slots[row];
    const int64_t place = is_live ? args.lengths[slot] + offset : 0;
    args.ids[token] = id_of(args, slot, args.host_ids[token]);
    args.positions[token] = place;
    args.row_of_token[token] = static_cast<int32_t>(row);
    if (args.page_size != 0)
        args.write_slots[token] = write_slot(args.slot_pages + slot * args.slot_pages_stride,
                                             place, args.page_size, is_live);
}

void place_row(const PlaceArgs& args, int64_t row) {
    const int64_t begin = args.query_starts[row], end = args.query_starts[row + 1];
    const int64_t slot = args.slots[row];
    const bool is_live = args.done[slot] == 0;
    const int32_t length = args.lengths[slot];
    args.kv_lengths[row] =
        is_live ? length + static_cast<int32_t>(end - begin) : (length > 1 ? length : 1);
    if (args.row_adapters != nullptr) args.row_adapters[row] = args.slot_adapters[slot];
    for (int64_t token = begin; token < end; ++token)
        place_token(args, token, row, token - begin, is_live);
    place_pages(args.row_pages + row * args.row_pages_stride,
                args.slot_pages + slot * args.slot_pages_stride, args.num_pages,
                args.page_size == 0 && !is_live);
    if (row == args.rows - 1)  // Tokens past the last row are padding of it.
        for (int64_t token = end; token < args.tokens; ++token)
            place_token(args, token, row, 0, false);
}

void place_view_row(const PlaceViewArgs& args, int64_t row) {
    const int64_t begin = args.query_starts[row], end = args.query_starts[row + 1];
    const int64_t slot = args.slots[row];
    const bool is_live = args.done[slot] == 0;
    const int32_t* pages = args.slot_pages + slot * args.slot_pages_stride;
    place_pages(args.row_pages + row * args.row_pages_stride, pages, args.num_pages,
                args.page_size == 0 && !is_live);
    if (args.page_size == 0) return;
    for (int64_t token = begin; token < end; ++token)
        args.write_slots[token] =
            write_slot(pages, args.positions[token], args.page_size, is_live);
    if (row == args.rows - 1)
        for (int64_t token = end; token < args.tokens; ++token) args.write_slots[token] = 0;
}

void run_place(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const PlaceArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) place_row(args, row);
}

void run_place_view(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const PlaceViewArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) place_view_row(args, row);
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
    const int64_t* drawn = args.drawn + row * args.num_drawn;
    for (int64_t j = 0; j < args.num_drawn; ++j) entry[2 + j] = static_cast<int32_t>(drawn[j]);
    if (args.done[slot] != 0) {
        entry[0] = 0;
        entry[1] = 1;
        return;
    }
    const int64_t left = max64(1, args.max_outputs[slot] - args.num_outputs[slot]);
    const int64_t most = min64(min64(args.accepted[row], left), args.num_drawn);
    int64_t count = 0;
    bool has_stop = false, is_faulty = false;
    while (count < most && !has_stop) {
        is_faulty = drawn[count] < 0;
        has_stop = is_faulty || is_stop(args, slot, drawn[count]);
        ++count;
    }
    args.num_outputs[slot] += count;
    const bool is_done =
        is_faulty || has_stop || args.num_outputs[slot] >= args.max_outputs[slot];
    if (!is_faulty) args.last_ids[slot] = static_cast<int32_t>(drawn[count - 1]);
    if (args.num_drawn > 1) args.lengths[slot] -= static_cast<int32_t>(args.num_draws[row] - count);
    args.done[slot] = is_done;
    entry[0] = is_faulty ? kFaulty : static_cast<int32_t>(count);
    entry[1] = is_done;
}

void run_settle(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const SettleArgs*>(untyped);
    int32_t* entry = args.outbox + *args.cursor % args.outbox_size * args.outbox_stride;
    for (int64_t row = 0; row < args.rows; ++row)
        settle_row(args, row, entry + row * args.outbox_row_stride);
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

void plan_place_view(const int64_t* args, PhaseList& list) {
    list.add_rows(run_place_view, args, as<PlaceViewArgs>(args).rows, kRowsPerChunk);
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
