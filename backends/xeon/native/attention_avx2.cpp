// Attention over paged keys and values: one split at a time, states merged in order.
//
// Query rows are (token, head) pairs of the heads that share a key/value head. Scores are computed
// for blocks of up to 6 rows by 16 tokens, outputs for up to 6 rows by 16 (or 3 by 32) features;
// an element's sum runs in order whatever the block.
#include "attention.h"
#include "kernels.h"
#include "softmax.h"

namespace headstock {
namespace {

struct Float32 {
    using Type = float;
    static __m256 load(const float* p) { return _mm256_loadu_ps(p); }
};
struct Bfloat16 {
    using Type = uint16_t;
    static __m256 load(const uint16_t* p) { return load_bf16(p); }
};
struct Float16 {
    using Type = uint16_t;
    static __m256 load(const uint16_t* p) { return load_half(p); }
};
// Whole numbers: the tokens' scales are multiplied into scores and weights.
struct Int8 {
    using Type = int8_t;
    static __m256 load(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
    }
};
// Codes of e4m3: 4 bits of exponent, 3 of mantissa. Scales as those of whole numbers.
struct Fp8 {
    using Type = uint8_t;
    static __m256 load(const uint8_t* p) {
        const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
        const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi32(0x7f));
        const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(code, magnitude), 24);
        const __m256i shifted =
            _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), _mm256_set1_epi32(120 << 23));
        // Without an exponent they are multiples of 2^-9.
        const __m256 small =
            _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(0x1p-9f));
        const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
        const __m256 value = _mm256_blendv_ps(_mm256_castsi256_ps(shifted), small,
                                              _mm256_castsi256_ps(is_small));
        return _mm256_or_ps(value, _mm256_castsi256_ps(sign));
    }
};
template <class T>
constexpr bool has_scales = std::is_same_v<T, Int8> || std::is_same_v<T, Fp8>;

// Scratch of an item.
struct Tile {
    int64_t rows;      // Query rows.
    float* q;          // Scaled. [rows, D]
    float* scores;     // [rows, kSplit]
    float* o;          // Of the split. [rows, D]
    float* m;          // [rows]
    float* l;
    float* total_o;    // Of all splits so far.
    float* total_m;
    float* total_l;
};

int64_t tile_rows(const AttentionPlan& plan) {
    return plan.tile_tokens * (plan.num_heads / plan.num_kv_heads);
}

size_t tile_bytes(const AttentionPlan& plan) {
    const int64_t floats = tile_rows(plan) * (3 * plan.head_dim + kSplit + 4);
    return static_cast<size_t>(floats + 64) * sizeof(float);
}

Tile tile_at(const AttentionPlan& plan, int64_t rows, char* memory) {
    const int64_t most = tile_rows(plan), size = plan.head_dim;
    auto* at = reinterpret_cast<float*>(memory);
    Tile tile{};
    tile.rows = rows;
    tile.q = at;
    tile.o = tile.q + most * size;
    tile.total_o = tile.o + most * size;
    tile.scores = tile.total_o + most * size;
    tile.m = tile.scores + most * kSplit;
    tile.l = tile.m + most;
    tile.total_m = tile.l + most;
    tile.total_l = tile.total_m + most;
    return tile;
}

// For the innermost blocks: their addresses take all registers there are. Inlined they share these
// with their caller's, and read some from memory again each time: a quarter more instructions.
#define HS_OUT_OF_LINE __attribute__((noinline))

// Scores of R rows against 16 tokens: keys [D][stride].
template <class T, int R>
HS_OUT_OF_LINE void score_block(const float* q, const typename T::Type* keys, int64_t stride,
                                int64_t size, float* scores) {
    __m256 sum[R][2];
    unrolled<R>([&](auto r) { sum[r][0] = sum[r][1] = _mm256_setzero_ps(); });
    for (int64_t d = 0; d < size; ++d, keys += stride) {
        const __m256 k0 = T::load(keys), k1 = T::load(keys + 8);
        unrolled<R>([&](auto r) {
            const __m256 a = _mm256_broadcast_ss(q + r * size + d);
            sum[r][0] = _mm256_fmadd_ps(k0, a, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(k1, a, sum[r][1]);
        });
    }
    unrolled<R>([&](auto r) {
        _mm256_storeu_ps(scores + r * kSplit, sum[r][0]);
        _mm256_storeu_ps(scores + r * kSplit + 8, sum[r][1]);
    });
}

// Adds the values of `count` tokens of one page, weighted, to outputs of R rows by 8 V features.
template <class T, int R, int V>
HS_OUT_OF_LINE void weigh_block(const float* weights, const typename T::Type* values, int64_t size,
                                int64_t count, float* o) {
    __m256 sum[R][V];
    unrolled<R>([&](auto r) {
        unrolled<V>([&](auto i) { sum[r][i] = _mm256_loadu_ps(o + r * size + 8 * i); });
    });
    for (int64_t t = 0; t < count; ++t, values += size) {
        __m256 v[V];
        unrolled<V>([&](auto i) { v[i] = T::load(values + 8 * i); });
        unrolled<R>([&](auto r) {
            const __m256 w = _mm256_broadcast_ss(weights + r * kSplit + t);
            unrolled<V>([&](auto i) { sum[r][i] = _mm256_fmadd_ps(w, v[i], sum[r][i]); });
        });
    }
    unrolled<R>([&](auto r) {
        unrolled<V>([&](auto i) { _mm256_storeu_ps(o + r * size + 8 * i, sum[r][i]); });
    });
}

// One page of a split, and which of the split's tokens lie in it.
struct PagePart {
    const char* keys;
    const char* values;
    const float* key_scales;    // Of 8-bit pages. [page_size]
    const float* value_scales;
    int64_t page_size;
    int64_t head_dim;
    int64_t begin;  // Token of the split.
    int64_t count;
};

// Multiplies what R rows have for the tokens of a page by the tokens' scales. What lies past the
// tokens, in a page's last lanes, is multiplied too, and never read.
template <int R>
inline void scale_tokens(const float* scales, int64_t count, float* of_tokens) {
    for (int64_t t = 0; t < count; t += 8) {
        const __m256 scale = _mm256_loadu_ps(scales + t);
        unrolled<R>([&](auto r) {
            float* at = of_tokens + r * kSplit + t;
            _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_loadu_ps(at), scale));
        });
    }
}

struct Score {
    template <class T, int R>
    static void run(const PagePart& page, const Tile& tile, int64_t row) {
        const auto* keys = reinterpret_cast<const typename T::Type*>(page.keys);
        const float* q = tile.q + row * page.head_dim;
        float* scores = tile.scores + row * kSplit + page.begin;
        for (int64_t t = 0; t < page.count; t += 16)
            score_block<T, R>(q, keys + t, page.page_size, page.head_dim, scores + t);
        if constexpr (has_scales<T>) scale_tokens<R>(page.key_scales, page.count, scores);
    }
};

struct Weigh {
    template <class T, int R>
    static void run(const PagePart& page, const Tile& tile, int64_t row) {
        const auto* values = reinterpret_cast<const typename T::Type*>(page.values);
        const int64_t size = page.head_dim, count = page.count;
        float* weights = tile.scores + row * kSplit + page.begin;
        if constexpr (has_scales<T>) scale_tokens<R>(page.value_scales, count, weights);
        float* o = tile.o + row * size;
        int64_t d = 0;
        if constexpr (R <= 3)
            for (; d + 32 <= size; d += 32)
                weigh_block<T, R, 4>(weights, values + d, size, count, o + d);
        for (; d + 16 <= size; d += 16)
            weigh_block<T, R, 2>(weights, values + d, size, count, o + d);
        for (; d + 8 <= size; d += 8)
            weigh_block<T, R, 1>(weights, values + d, size, count, o + d);
    }
};

// Calls F::run<T, R> for blocks of rows, 6 at a time and then what is left.
template <class F, class T>
inline void for_row_blocks(const PagePart& page, const Tile& tile) {
    int64_t row = 0;
    for (; row + 6 <= tile.rows; row += 6) F::template run<T, 6>(page, tile, row);
    switch (tile.rows - row) {
        case 5: F::template run<T, 5>(page, tile, row); break;
        case 4: F::template run<T, 4>(page, tile, row); break;
        case 3: F::template run<T, 3>(page, tile, row); break;
        case 2: F::template run<T, 2>(page, tile, row); break;
        case 1: F::template run<T, 1>(page, tile, row); break;
        default: break;
    }
}

// One split of one row's tokens, for one key/value head.
struct Split {
    const Pages& pages;
    const int32_t* table;  // Of the row.
    int64_t head;
    int64_t begin;         // First token.
    int64_t count;         // Tokens up to the last one that any query of the tile sees.
    int64_t first;         // First token of the split that any does; of pages before, none is read.
};

// Calls F for each page of the split in turn: a page stays in the nearest cache for all rows.
template <class F>
void for_pages(const Split& split, const Tile& tile) {
    const Pages& pages = split.pages;
    int64_t t = split.first > 0 ? split.first / pages.page_size * pages.page_size : 0;
    const int32_t* page = split.table + (split.begin + t) / pages.page_size;
    for (; t < split.count; t += pages.page_size, ++page) {
        char *keys = pages.keys(*page, split.head), *values = pages.values(*page, split.head);
        const PagePart part{keys, values, pages.scales(keys), pages.scales(values),
                            pages.page_size, pages.head_dim, t,
                            min64(pages.page_size, split.count - t)};
        switch (static_cast<Element>(pages.element)) {
            case Element::kFloat32: for_row_blocks<F, Float32>(part, tile); break;
            case Element::kBfloat16: for_row_blocks<F, Bfloat16>(part, tile); break;
            case Element::kFloat16: for_row_blocks<F, Float16>(part, tile); break;
            case Element::kInt8: for_row_blocks<F, Int8>(part, tile); break;
            case Element::kFp8: for_row_blocks<F, Fp8>(part, tile); break;
        }
    }
}

// Caps scores, and some of what lies past them: their number is rounded up to whole vectors.
void cap_scores(float* scores, int64_t count, float cap) {
    const __m256 most = _mm256_set1_ps(cap), inverse = _mm256_set1_ps(1.0f / cap);
    for (int64_t i = 0; i < count; i += 8) {
        const __m256 share = _mm256_mul_ps(_mm256_loadu_ps(scores + i), inverse);
        _mm256_storeu_ps(scores + i, _mm256_mul_ps(most, tanh8(share)));
    }
}

// One item at work.
class ItemRun {
public:
    ItemRun(const AttendArgs& args, const AttentionItem& item, char* memory)
        : args_(args), plan_(*args.plan), item_(item), size_(args.pages.head_dim),
          group_(args.num_heads / args.pages.num_kv_heads),
          tile_(tile_at(plan_, item.token_count * group_, memory)) {}

    void run() {
        for_rows([&](int64_t row, int64_t token, int64_t head) {
            load_query(row, token, head);
            clear_total(tile_.total_o + row * size_, tile_.total_m + row, tile_.total_l + row, size_);
        });
        for (int64_t s = item_.split_begin; s < item_.split_end; ++s) run_split(s);
        if (item_.is_partial) return;
        for_rows([&](int64_t row, int64_t token, int64_t head) {
            finish(tile_.total_o + row * size_, tile_.total_m[row], tile_.total_l[row],
                   args_.sinks ? args_.sinks + head : nullptr, size_, output(token, head));
        });
    }

private:
    // Calls f(row, token, query head) for the rows of the tile.
    template <class F>
    void for_rows(F f) const {
        for (int64_t row = 0; row < tile_.rows; ++row)
            f(row, item_.token_begin + row / group_, item_.kv_head * group_ + row % group_);
    }

    float* output(int64_t token, int64_t head) const {
        return args_.y + (token * args_.num_heads + head) * size_;
    }

    void load_query(int64_t row, int64_t token, int64_t head) const {
        const float* q = args_.q + token * args_.q_stride + head * size_;
        const __m256 scale = _mm256_set1_ps(static_cast<float>(args_.scale));
        for (int64_t d = 0; d < size_; d += 8)
            _mm256_storeu_ps(tile_.q + row * size_ + d, _mm256_mul_ps(_mm256_loadu_ps(q + d), scale));
    }

    void run_split(int64_t s) const {
        int64_t least = plan_.first[static_cast<size_t>(item_.token_begin)], most = 0;
        for (int64_t i = 0; i < item_.token_count; ++i) {
            const auto token = static_cast<size_t>(item_.token_begin + i);
            least = min64(least, plan_.first[token]);
            most = max64(most, plan_.limit[token]);
        }
        const int64_t begin = s * kSplit, count = min64(kSplit, most - begin);
        const int64_t first = least - begin;
        const Split split{args_.pages, args_.page_table + item_.row * args_.pages_per_row,
                          item_.kv_head, begin, count, min64(max64(first, 0), count)};
        for_pages<Score>(split, tile_);
        for_rows([&](int64_t row, int64_t token, int64_t) { soften_row(row, token, split); });
        std::memset(tile_.o, 0, static_cast<size_t>(tile_.rows * size_) * sizeof(float));
        for_pages<Weigh>(split, tile_);
        for_rows([&](int64_t row, int64_t token, int64_t head) { keep_state(row, token, head, s); });
    }

    void soften_row(int64_t row, int64_t token, const Split& split) const {
        float* scores = tile_.scores + row * kSplit;
        if (args_.soft_cap > 0) cap_scores(scores, split.count, static_cast<float>(args_.soft_cap));
        const int64_t limit = plan_.limit[static_cast<size_t>(token)] - split.begin;
        const int64_t first = max64(0, plan_.first[static_cast<size_t>(token)] - split.begin);
        soften(scores, split.count, min64(first, split.count), min64(limit, split.count),
               tile_.m + row, tile_.l + row);
    }

    void keep_state(int64_t row, int64_t token, int64_t head, int64_t s) const {
        const float* o = tile_.o + row * size_;
        if (!item_.is_partial) {
            merge(tile_.total_o + row * size_, tile_.total_m + row, tile_.total_l + row, o,
                  tile_.m[row], tile_.l[row], size_);
            return;
        }
        const auto t = static_cast<size_t>(token);
        const int64_t state = plan_.first_state[t] + s - plan_.states_from[t];
        const int64_t at = state * args_.num_heads + head;
        std::memcpy(plan_.partial_o + at * size_, o, static_cast<size_t>(size_) * sizeof(float));
        plan_.partial_ml[2 * at] = tile_.m[row];
        plan_.partial_ml[2 * at + 1] = tile_.l[row];
    }

    const AttendArgs& args_;
    const AttentionPlan& plan_;
    const AttentionItem& item_;
    const int64_t size_;
    const int64_t group_;
    const Tile tile_;
};

int64_t num_item_chunks(const AttentionPlan& plan) { return 8 * plan.num_threads; }

void run_items(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const AttendArgs*>(untyped);
    const auto& items = args.plan->items;
    const auto step = static_cast<size_t>(num_item_chunks(*args.plan));
    for (auto i = static_cast<size_t>(chunk); i < items.size(); i += step)
        ItemRun(args, items[i], worker.local).run();
}

void merge_token(const AttendArgs& args, int64_t token, float* total) {
    const AttentionPlan& plan = *args.plan;
    const auto t = static_cast<size_t>(token);
    if (plan.limit[t] == 0 || plan.num_states[t] == 0) return;
    const int64_t size = plan.head_dim;
    for (int64_t h = 0; h < plan.num_heads; ++h) {
        float m, l;
        clear_total(total, &m, &l, size);
        for (int64_t i = 0; i < plan.num_states[t]; ++i) {
            const int64_t at = (plan.first_state[t] + i) * plan.num_heads + h;
            merge(total, &m, &l, plan.partial_o + at * size, plan.partial_ml[2 * at],
                  plan.partial_ml[2 * at + 1], size);
        }
        finish(total, m, l, args.sinks ? args.sinks + h : nullptr, size,
               args.y + (token * plan.num_heads + h) * size);
    }
}

void run_merge(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const AttendArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.tokens);
    for (int64_t token = chunk * kRowsPerChunk; token < last; ++token)
        merge_token(args, token, reinterpret_cast<float*>(worker.local));
}

}  // namespace

void plan_attend(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<AttendArgs>(untyped);
    list.need_local(tile_bytes(*args.plan));
    list.add(run_items, untyped, num_item_chunks(*args.plan));
    list.add_rows(run_merge, untyped, args.tokens, kRowsPerChunk);
}

}  // namespace headstock
