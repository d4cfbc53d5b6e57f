// Drafting: what a step drew joins the histories, and what may follow is looked up in them.
// Exact integer work; the ops of `headstock.ops.drafts` and two of `headstock.ops.steps`.
#include "kernels.h"
#include "numbers.h"

namespace headstock {
namespace {

constexpr int32_t kNoDraft = -1;

void run_accept(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const AcceptArgs*>(untyped);
    for (int64_t row = 0; row < args.rows; ++row) {
        const int64_t* drawn = args.drawn + row * (args.num_drafts + 1);
        const int32_t* drafts = args.drafts + row * args.drafts_stride;
        const int64_t most = min64(args.num_drafts, args.num_draws[row] - 1);
        int64_t count = 0;
        while (count < most && drawn[count] == drafts[count]) ++count;
        args.accepted[row] = static_cast<int32_t>(1 + count);
    }
}

void run_spread(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const SpreadArgs*>(untyped);
    for (int64_t row = 0; row < args.rows; ++row)
        for (int64_t j = 0; j < args.num_draws; ++j) {
            args.slots_out[row * args.num_draws + j] = args.slots[row];
            args.outputs[row * args.num_draws + j] = args.num_outputs[args.slots[row]] + j;
        }
}

void run_append(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const AppendArgs*>(untyped);
    const int64_t step = (*args.cursor + args.outbox_size - 1) % args.outbox_size;
    for (int64_t row = 0; row < args.rows; ++row) {
        const int32_t* entry =
            args.outbox + step * args.outbox_stride + row * args.outbox_row_stride;
        args.known[row] = 0;
        if (entry[0] <= 0 || entry[1] != 0) continue;  // It drew nothing, or is done.
        const int32_t slot = args.slots[row];
        const int64_t known = args.lengths[slot] + 1;
        int32_t* history = args.histories + slot * args.stride + known - entry[0];
        std::memcpy(history, entry + 2, static_cast<size_t>(entry[0]) * sizeof(int32_t));
        args.known[row] = static_cast<int32_t>(known);
    }
}

// Where the longest match of the last tokens ends, the latest of equals; -1: nowhere.
int64_t find_match(const int32_t* history, int64_t known, int64_t max_n, int64_t min_n) {
    int64_t found = -1, longest = min_n - 1;
    const int64_t last = known - 1;
    for (int64_t place = last - 1; place >= longest && longest < max_n; --place) {
        int64_t length = 0;
        while (length < max_n && length <= place &&
               history[place - length] == history[last - length])
            ++length;
        if (length > longest) {
            longest = length;
            found = place;
        }
    }
    return found;
}

void run_ngrams(const void* untyped, int64_t row, const Worker&) {
    const auto& args = *static_cast<const NgramArgs*>(untyped);
    const int32_t* history = args.histories + args.slots[row] * args.stride;
    int32_t* drafts = args.drafts + row * args.num_drafts;
    const int64_t known = args.known[row];
    const int64_t found = find_match(history, known, args.max_n, args.min_n);
    const int64_t period = known - 1 - found;
    for (int64_t i = 0; i < args.num_drafts; ++i)
        drafts[i] = found < 0 ? kNoDraft : history[found + 1 + i % period];
}

void run_enter(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const EnterArgs*>(untyped);
    const int64_t step = (*args.cursor + args.outbox_size - 1) % args.outbox_size;
    for (int64_t row = 0; row < args.rows; ++row) {
        const int32_t* drafts = args.drafts + row * args.num_drafts;
        int32_t* kept = args.slot_drafts + args.slots[row] * args.num_drafts;
        int64_t count = 0;
        while (count < args.num_drafts && drafts[count] >= 0 && drafts[count] < args.vocab_size) {
            kept[count] = drafts[count];
            ++count;
        }
        for (int64_t i = count; i < args.num_drafts; ++i) kept[i] = kNoDraft;
        int32_t* entry = args.outbox + step * args.outbox_stride + row * args.outbox_row_stride;
        entry[args.last_word] = static_cast<int32_t>(count);
    }
}

}  // namespace

void plan_accept(const int64_t* args, PhaseList& list) { list.add(run_accept, args, 1); }
void plan_spread(const int64_t* args, PhaseList& list) { list.add(run_spread, args, 1); }
void plan_append(const int64_t* args, PhaseList& list) { list.add(run_append, args, 1); }
void plan_enter(const int64_t* args, PhaseList& list) { list.add(run_enter, args, 1); }

void plan_ngrams(const int64_t* args, PhaseList& list) {
    list.add(run_ngrams, args, as<NgramArgs>(args).rows);
}

}  // namespace headstock
