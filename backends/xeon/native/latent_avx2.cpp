// Latent attention: absorbed queries against pages of latents, one split at a time.
//
// A latent is both key (with the rotated part) and value, so a page is read once for scores and
// once, from the near cache, for sums. Splits and their merging are those of attention.
#include "attention.h"
#include "latent.h"
#include "row_blocks.h"
#include "softmax.h"

namespace headstock {
namespace {

// Rows of some head at tokens [begin, begin + rows), or of some heads at one token.
struct RowList {
    const float* from[kMostRows];
    float* to[kMostRows];
};

constexpr int64_t kHeadTokens = 24;  // Tokens that a chunk takes through a head's matrix.

int64_t num_token_blocks(int64_t tokens) { return (tokens + kHeadTokens - 1) / kHeadTokens; }

void run_absorb(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const LatentAbsorbArgs*>(untyped);
    const int64_t blocks = num_token_blocks(args.tokens);
    const int64_t head = chunk / blocks, begin = chunk % blocks * kHeadTokens;
    const int64_t rows = min64(kHeadTokens, args.tokens - begin);
    const int64_t width = args.key_size + args.rotary_size;
    const int64_t cached = args.latent_size + args.rotary_size;
    const auto scale = static_cast<float>(args.scale);
    RowList list;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t line = (begin + r) * args.num_heads + head;
        list.from[r] = args.q + line * width;
        list.to[r] = args.y + line * cached;
        std::memset(list.to[r], 0, static_cast<size_t>(args.latent_size) * sizeof(float));
    }
    const float* up = args.up + head * (args.key_size + args.value_size) * args.latent_size;
    add_rows<Float32Rows>(list.from, rows, up, args.latent_size, args.latent_size, args.key_size,
                          list.to, 0);
    for (int64_t r = 0; r < rows; ++r) {
        float* y = list.to[r];
        for (int64_t i = 0; i < args.latent_size; ++i) y[i] *= scale;
        for (int64_t i = 0; i < args.rotary_size; ++i)
            y[args.latent_size + i] = list.from[r][args.key_size + i] * scale;
    }
}

void run_expand(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const LatentExpandArgs*>(untyped);
    const int64_t blocks = num_token_blocks(args.tokens);
    const int64_t head = chunk / blocks, begin = chunk % blocks * kHeadTokens;
    const int64_t rows = min64(kHeadTokens, args.tokens - begin);
    RowList list;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t line = (begin + r) * args.num_heads + head;
        list.from[r] = args.sums + line * args.latent_size;
        list.to[r] = args.y + line * args.value_size;
    }
    const int64_t made = args.key_size + args.value_size;
    const float* up = args.up + (head * made + args.key_size) * args.latent_size;
    multiply_rows<Float32Rows>(list.from, rows, up, args.latent_size, args.latent_size,
                               args.value_size, list.to, 0);
}

// Scratch of an item: scores and the split's sums, then what all splits so far make.
struct LatentTile {
    int64_t rows;
    float* scores;      // [rows, kSplit]
    float* o;           // [rows, C]
    float* total_o;
    float* m;           // [rows]
    float* l;
    float* total_m;
    float* total_l;
};

int64_t most_rows(const AttentionPlan& plan) {
    return plan.tile_tokens * (plan.num_heads / plan.num_kv_heads);
}

size_t tile_bytes(const AttentionPlan& plan) {
    const int64_t floats = most_rows(plan) * (2 * plan.head_dim + kSplit + 4);
    return static_cast<size_t>(floats + 64) * sizeof(float);
}

LatentTile tile_at(const AttentionPlan& plan, int64_t rows, char* memory) {
    const int64_t most = most_rows(plan), size = plan.head_dim;
    LatentTile tile{};
    tile.rows = rows;
    tile.scores = reinterpret_cast<float*>(memory);
    tile.o = tile.scores + most * kSplit;
    tile.total_o = tile.o + most * size;
    tile.m = tile.total_o + most * size;
    tile.l = tile.m + most;
    tile.total_m = tile.l + most;
    tile.total_l = tile.total_m + most;
    return tile;
}

// One item at work.
class LatentItem {
public:
    LatentItem(const LatentAttendArgs& args, const AttentionItem& item, char* memory)
        : args_(args), plan_(*args.plan), item_(item), size_(args.pages.latent_size),
          group_(args.num_heads / plan_.num_kv_heads),
          tile_(tile_at(plan_, item.token_count * group_, memory)) {
        for (int64_t r = 0; r < tile_.rows; ++r) {
            q_[r] = args.q + line(r) * args.pages.cached_size();
            scores_[r] = tile_.scores + r * kSplit;
            o_[r] = tile_.o + r * size_;
            clear_total(tile_.total_o + r * size_, tile_.total_m + r, tile_.total_l + r, size_);
        }
    }

    void run() {
        for (int64_t s = item_.split_begin; s < item_.split_end; ++s) {
            switch (static_cast<Element>(args_.pages.element)) {
                case Element::kBfloat16: run_split<Bfloat16Rows>(s); break;
                case Element::kFloat16: run_split<Float16Rows>(s); break;
                default: run_split<Float32Rows>(s); break;
            }
        }
        if (item_.is_partial) return;
        for (int64_t r = 0; r < tile_.rows; ++r)
            finish(tile_.total_o + r * size_, tile_.total_m[r], tile_.total_l[r], nullptr, size_,
                   args_.y + line(r) * size_);
    }

private:
    int64_t token(int64_t row) const { return item_.token_begin + row / group_; }
    // Of a row of the tile among all (token, head) pairs.
    int64_t line(int64_t row) const {
        return token(row) * args_.num_heads + item_.kv_head * group_ + row % group_;
    }

    int64_t limit(int64_t row) const { return plan_.limit[static_cast<size_t>(token(row))]; }

    template <class T>
    void run_split(int64_t s) {
        const int64_t begin = s * kSplit;
        const int64_t count = min64(kSplit, limit(tile_.rows - 1) - begin);
        for_pages<T>(begin, count, [&](const typename T::Type* page, int64_t first, int64_t tokens) {
            multiply_rows<T>(q_, tile_.rows, page, args_.pages.cached_size(),
                             args_.pages.cached_size(), tokens, scores_, first);
        });
        for (int64_t r = 0; r < tile_.rows; ++r)
            soften(scores_[r], count, 0, min64(limit(r) - begin, count), tile_.m + r, tile_.l + r);
        std::memset(tile_.o, 0, static_cast<size_t>(tile_.rows * size_) * sizeof(float));
        for_pages<T>(begin, count, [&](const typename T::Type* page, int64_t first, int64_t tokens) {
            add_rows<T>(scores_, tile_.rows, page, args_.pages.cached_size(), size_, tokens, o_,
                        first);
        });
        for (int64_t r = 0; r < tile_.rows; ++r) keep_state(r, s);
    }

    template <class T, class F>
    void for_pages(int64_t begin, int64_t count, F f) const {
        const LatentPages& pages = args_.pages;
        const int32_t* page = args_.page_table + item_.row * args_.pages_per_row +
                              begin / pages.page_size;
        for (int64_t t = 0; t < count; t += pages.page_size, ++page)
            f(reinterpret_cast<const typename T::Type*>(pages.at(*page * pages.page_size)), t,
              min64(pages.page_size, count - t));
    }

    void keep_state(int64_t r, int64_t s) const {
        if (!item_.is_partial) {
            merge(tile_.total_o + r * size_, tile_.total_m + r, tile_.total_l + r, o_[r], tile_.m[r],
                  tile_.l[r], size_);
            return;
        }
        const auto t = static_cast<size_t>(token(r));
        const int64_t state = plan_.first_state[t] + s - plan_.states_from[t];
        const int64_t at = state * args_.num_heads + line(r) % args_.num_heads;
        std::memcpy(plan_.partial_o + at * size_, o_[r], static_cast<size_t>(size_) * sizeof(float));
        plan_.partial_ml[2 * at] = tile_.m[r];
        plan_.partial_ml[2 * at + 1] = tile_.l[r];
    }

    const LatentAttendArgs& args_;
    const AttentionPlan& plan_;
    const AttentionItem& item_;
    const int64_t size_;
    const int64_t group_;
    const LatentTile tile_;
    const float* q_[kMostRows];
    float* scores_[kMostRows];
    float* o_[kMostRows];
};

int64_t num_item_chunks(const AttentionPlan& plan) { return 8 * plan.num_threads; }

void run_items(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const LatentAttendArgs*>(untyped);
    const auto& items = args.plan->items;
    const auto step = static_cast<size_t>(num_item_chunks(*args.plan));
    for (auto i = static_cast<size_t>(chunk); i < items.size(); i += step)
        LatentItem(args, items[i], worker.local).run();
}

void run_merge(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const LatentAttendArgs*>(untyped);
    const AttentionPlan& plan = *args.plan;
    const int64_t token = chunk / args.num_heads, head = chunk % args.num_heads;
    const auto t = static_cast<size_t>(token);
    if (plan.limit[t] == 0 || plan.num_states[t] == 0) return;
    const int64_t size = plan.head_dim;
    auto* total = reinterpret_cast<float*>(worker.local);
    float m, l;
    clear_total(total, &m, &l, size);
    for (int64_t i = 0; i < plan.num_states[t]; ++i) {
        const int64_t at = (plan.first_state[t] + i) * args.num_heads + head;
        merge(total, &m, &l, plan.partial_o + at * size, plan.partial_ml[2 * at],
              plan.partial_ml[2 * at + 1], size);
    }
    finish(total, m, l, nullptr, size, args.y + chunk * size);
}

}  // namespace

void plan_latent_absorb(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<LatentAbsorbArgs>(untyped);
    list.add(run_absorb, untyped, args.num_heads * num_token_blocks(args.tokens));
}

void plan_latent_attend(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<LatentAttendArgs>(untyped);
    list.need_local(tile_bytes(*args.plan));
    list.add(run_items, untyped, num_item_chunks(*args.plan));
    list.add(run_merge, untyped, args.tokens * args.num_heads);
}

void plan_latent_expand(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<LatentExpandArgs>(untyped);
    list.add(run_expand, untyped, args.num_heads * num_token_blocks(args.tokens));
}

}  // namespace headstock
