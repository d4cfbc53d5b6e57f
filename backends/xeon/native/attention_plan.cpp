// Cutting a step's attention into items. Runs once a step, on one thread: some microseconds.
#include "attention.h"

#include "kernels.h"
#include "memory.h"
#include "numbers.h"

namespace headstock {

AttentionPlan::AttentionPlan(int64_t max_tokens, int64_t max_rows, int64_t num_heads,
                             int64_t num_kv_heads, int64_t head_dim, int64_t max_length,
                             int64_t window, bool is_causal, int num_threads)
    : num_heads(num_heads), num_kv_heads(num_kv_heads), head_dim(head_dim), window(window),
      is_causal(is_causal), num_threads(num_threads),
      tile_tokens(max64(1, kTileRows / max64(1, num_heads / num_kv_heads))),
      limit(static_cast<size_t>(max_tokens)), first(limit.size()), num_states(limit.size()), first_state(limit.size()),
      states_from(limit.size()), row_begin(static_cast<size_t>(max_rows)),
      row_end(row_begin.size()), next_split(row_begin.size()), end_split(row_begin.size()),
      is_partial(row_begin.size()) {
    const int64_t splits = (max_length + kSplit - 1) / kSplit;
    // Lazily touched, so generous; rows past it are simply not split.
    max_states = min64(8192, max_rows * kSmallQuery * splits);
    const auto count = static_cast<size_t>(max_states * num_heads);
    o_bytes = count * static_cast<size_t>(head_dim) * sizeof(float);
    ml_bytes = count * 2 * sizeof(float);
    partial_o = static_cast<float*>(allocate_pages(o_bytes));
    partial_ml = static_cast<float*>(allocate_pages(ml_bytes));
    if (!partial_o || !partial_ml) max_states = 0;
    items.reserve(static_cast<size_t>(num_kv_heads * (max_rows * 4 + max_tokens / tile_tokens + 64)));
}

AttentionPlan::~AttentionPlan() {
    free_pages(partial_o, o_bytes);
    free_pages(partial_ml, ml_bytes);
}

namespace {

class Planner {
public:
    Planner(AttentionPlan& plan, const AttendPlanArgs& args) : plan_(plan), args_(args) {}

    void run() {
        plan_.items.clear();
        plan_.num_taken = 0;
        for (int64_t t = 0; t < args_.tokens; ++t) plan_.limit[idx(t)] = 0;
        for (int64_t r = 0; r < args_.rows; ++r) begin_row(r);
        if (args_.counts && args_.tree)
            for (int64_t n = 0; n < args_.counts[2]; ++n) share(args_.tree + 4 * n);
        for (int64_t r = 0; r < args_.rows; ++r) finish_row(r);
    }

private:
    static size_t idx(int64_t i) { return static_cast<size_t>(i); }

    void begin_row(int64_t r) {
        const int64_t begin = args_.query_starts[r];
        const int64_t end = min64(args_.query_starts[r + 1], args_.tokens);
        const int64_t length = args_.kv_lengths[r];
        plan_.row_begin[idx(r)] = static_cast<int32_t>(begin);
        plan_.row_end[idx(r)] = static_cast<int32_t>(max64(begin, end));
        for (int64_t t = begin; t < end; ++t) {
            const int64_t own = max64(1, length - (end - 1 - t));  // Its position + 1.
            const int64_t behind = plan_.window > 0 ? own + plan_.window - 1 : length;
            const int64_t limit = plan_.is_causal ? own : max64(1, min64(length, behind));
            plan_.limit[idx(t)] = static_cast<int32_t>(limit);
            plan_.first[idx(t)] = static_cast<int32_t>(first_in_window(own, plan_.window));
            plan_.num_states[idx(t)] = 0;
        }
        plan_.is_partial[idx(r)] = 0;
        plan_.next_split[idx(r)] = end > begin ? first_split(begin) : 0;
        plan_.end_split[idx(r)] = static_cast<int32_t>((length + kSplit - 1) / kSplit);
    }

    // First split that a token sees anything of.
    int32_t first_split(int64_t token) const {
        return static_cast<int32_t>(plan_.first[idx(token)] / kSplit);
    }

    // Gives each token of the row a state a split to leave; false: there are none left.
    bool take_states(int64_t r) {
        if (plan_.is_partial[idx(r)]) return true;
        const int64_t begin = plan_.row_begin[idx(r)], end = plan_.row_end[idx(r)];
        const int64_t splits = plan_.end_split[idx(r)] - plan_.next_split[idx(r)];
        if (end - begin > kSmallQuery) return false;
        if (plan_.num_taken + (end - begin) * splits > plan_.max_states) return false;
        for (int64_t t = begin; t < end; ++t) {
            plan_.first_state[idx(t)] = static_cast<int32_t>(plan_.num_taken);
            plan_.states_from[idx(t)] = plan_.next_split[idx(r)];
            plan_.num_states[idx(t)] = static_cast<int32_t>(splits);
            plan_.num_taken += splits;
        }
        plan_.is_partial[idx(r)] = 1;
        return true;
    }

    // Lets the rows of a node attend together to the splits of its range that all see whole: pages
    // before a row's window may be another's by now.
    void share(const int32_t* node) {
        const int64_t row_begin = max64(0, node[0]), row_end = min64(node[1], args_.rows);
        int64_t begin = (node[2] + kSplit - 1) / kSplit, end = node[3] / kSplit;
        for (int64_t r = row_begin; r < row_end; ++r) {
            if (plan_.row_end[idx(r)] - plan_.row_begin[idx(r)] > kSmallQuery) return;
            if (plan_.row_begin[idx(r)] == plan_.row_end[idx(r)]) return;
            const int64_t last_token = plan_.row_end[idx(r)] - 1;
            const int64_t first_query = plan_.limit[idx(plan_.row_begin[idx(r)])] - 1;
            begin = max64(begin, plan_.next_split[idx(r)]);
            begin = max64(begin, (plan_.first[idx(last_token)] + kSplit - 1) / kSplit);
            end = min64(end, first_query / kSplit);
        }
        if (row_end - row_begin < 2 || begin >= end) return;
        for (int64_t r = row_begin; r < row_end; ++r)
            if (!take_states(r)) return;
        for (int64_t r = row_begin; r < row_end; ++r) {
            add_row_items(r, plan_.next_split[idx(r)], begin);
            plan_.next_split[idx(r)] = static_cast<int32_t>(end);
        }
        add_tiles(plan_.row_begin[idx(row_begin)], plan_.row_end[idx(row_end - 1)], row_begin, begin,
                  end, true);
    }

    void finish_row(int64_t r) {
        const int64_t begin = plan_.next_split[idx(r)], end = plan_.end_split[idx(r)];
        if (plan_.row_begin[idx(r)] == plan_.row_end[idx(r)]) return;
        const bool is_lonely = args_.rows * plan_.num_kv_heads < 8 * plan_.num_threads;
        if (is_lonely && end - begin > 1) take_states(r);
        if (plan_.is_partial[idx(r)]) add_row_items(r, begin, end);
        else add_tiles(plan_.row_begin[idx(r)], plan_.row_end[idx(r)], r, begin, end, false);
    }

    void add_row_items(int64_t r, int64_t begin, int64_t end) {
        add_tiles(plan_.row_begin[idx(r)], plan_.row_end[idx(r)], r, begin, end, true);
    }

    // Adds items for query tokens [first, last) against splits [begin, end) of row `r`'s pages.
    void add_tiles(int64_t first, int64_t last, int64_t r, int64_t begin, int64_t end,
                   bool is_partial) {
        const int64_t tiles = (last - first + plan_.tile_tokens - 1) / plan_.tile_tokens;
        const int64_t spread = 4 * plan_.num_threads;
        const int64_t run = is_partial
            ? max64(1, (end - begin) * tiles * plan_.num_kv_heads * args_.rows / spread / 4)
            : end - begin;
        for (int64_t t = first; t < last; t += plan_.tile_tokens) {
            const int64_t count = min64(plan_.tile_tokens, last - t);
            for (int64_t h = 0; h < plan_.num_kv_heads; ++h)
                for (int64_t s = begin; s < end; s += run)
                    add_item(t, count, h, r, s, min64(s + run, end), is_partial);
        }
    }

    void add_item(int64_t t, int64_t count, int64_t h, int64_t r, int64_t begin, int64_t end,
                  bool is_partial) {
        if (!is_partial) {  // A tile of a long row sees less than the row's last token does.
            end = min64(end, (plan_.limit[idx(t + count - 1)] + kSplit - 1) / kSplit);
            begin = max64(begin, first_split(t));
        }
        plan_.items.push_back({static_cast<int32_t>(t), static_cast<int32_t>(count),
                               static_cast<int32_t>(h), static_cast<int32_t>(r),
                               static_cast<int32_t>(begin), static_cast<int32_t>(end), is_partial});
    }

    AttentionPlan& plan_;
    const AttendPlanArgs& args_;
};

void run_plan(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const AttendPlanArgs*>(untyped);
    Planner(*args.plan, args).run();
}

}  // namespace

void plan_attend_plan(const int64_t* args, PhaseList& list) { list.add(run_plan, args, 1); }

}  // namespace headstock
