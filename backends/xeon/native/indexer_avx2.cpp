// Choosing what attention reads: scores of all keys that a token sees, and the best of them.
//
// A token's scores are made by one chunk or by several, whichever keeps the threads at work; each
// score is one sum in order, so what is chosen is the same.
#include "indexer.h"

#include "narrow.h"
#include "rotate.h"
#include "row_blocks.h"

namespace headstock {
namespace {

constexpr int64_t kTile = 128;              // Keys that heads are compared with at once.
constexpr int64_t kKeysAChunk = 1024;       // About, where a token's keys are many chunks'.
constexpr int64_t kSharedScores = 1 << 22;  // Most scores that are kept from phase to phase.

void run_prepare(const void* untyped, int64_t token, const Worker& worker) {
    const auto& args = *static_cast<const IndexPrepareArgs*>(untyped);
    const int64_t size = args.pages.head_dim, half = args.rotary_size / 2;
    const auto bytes = static_cast<size_t>(size) * sizeof(float);
    const float* cos_sin = args.cos_sin + args.positions[token] * args.rotary_size;
    const bool is_interleaved = args.is_interleaved != 0;
    const int64_t first = token * args.num_heads * size;
    std::memcpy(args.turned + first, args.q + first, bytes * static_cast<size_t>(args.num_heads));
    for (int64_t h = 0; h < args.num_heads; ++h)
        rotate_pairs(args.turned + first + h * size, cos_sin, half, is_interleaved);
    auto* key = reinterpret_cast<float*>(worker.local);
    std::memcpy(key, args.k + token * args.k_stride, bytes);
    rotate_pairs(key, cos_sin, half, is_interleaved);
    store_row(args.pages.at(args.write_slots[token]), args.pages.element, key, size);
}

// Lists of what is chosen of a token, and what each has to choose from.
struct Lists {
    int64_t count;       // 1, or H.
    int64_t candidates;  // Keys or blocks, rounded up to whole vectors.

    explicit Lists(const IndexChooseArgs& args)
        : count(args.weights ? 1 : args.num_heads),
          candidates(round_up((args.max_keys + args.block_size - 1) / args.block_size, 8)) {}

    int64_t scores() const { return count * candidates; }
};

int64_t keys_seen(const IndexChooseArgs& args, int64_t token) {
    return min64(args.rows.seen(token) / args.pages.rate, args.max_keys);
}

// Calls f(keys, first, count) for the keys [begin, begin + count), those of a page at a time.
template <class T, class F>
void for_keys(const IndexChooseArgs& args, const int32_t* table, int64_t begin, int64_t count,
              F f) {
    const IndexPages& pages = args.pages;
    const int64_t in_page = pages.keys_a_page();
    for (int64_t i = 0; i < count;) {
        const int64_t slot = pages.slot(table, begin + i);
        const int64_t some = min64(in_page - slot % in_page, count - i);
        f(reinterpret_cast<const typename T::Type*>(pages.at(slot)), i, some);
        i += some;
    }
}

// Adds the weighed scores of some heads to those of `count` keys, and to what fills the vector.
void add_weighed(const float* tile, const float* weights, int64_t heads, int64_t count,
                 float* scores) {
    for (int64_t i = 0; i < count; i += 8) {
        __m256 sum = _mm256_loadu_ps(scores + i);
        for (int64_t h = 0; h < heads; ++h) {
            const __m256 above =
                _mm256_max_ps(_mm256_loadu_ps(tile + h * kTile + i), _mm256_setzero_ps());
            sum = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + h), above, sum);
        }
        _mm256_storeu_ps(scores + i, sum);
    }
}

void keep_best(const float* tile, int64_t first_key, int64_t block_size, int64_t count,
               float* of_blocks) {
    for (int64_t i = 0; i < count; ++i) {
        float& best = of_blocks[(first_key + i) / block_size];
        if (tile[i] > best) best = tile[i];
    }
}

// Scores keys [begin, end) of what a token sees.
template <class T>
void score_keys(const IndexChooseArgs& args, int64_t token, int64_t begin, int64_t end,
                float* scores, float* tile) {
    const int64_t size = args.pages.head_dim, heads = args.num_heads;
    const int64_t candidates = Lists(args).candidates;
    const int32_t* table = args.rows.pages(token);
    const float* q[kMostRows];
    float* to[kMostRows];
    for (int64_t r = 0; r < kMostRows; ++r) to[r] = tile + r * kTile;
    for (int64_t key = begin; key < end; key += kTile) {
        const int64_t count = min64(kTile, end - key);
        for (int64_t h = 0; h < heads; h += kMostRows) {
            const int64_t rows = min64(kMostRows, heads - h);
            for (int64_t r = 0; r < rows; ++r) q[r] = args.q + (token * heads + h + r) * size;
            for_keys<T>(args, table, key, count,
                        [&](const typename T::Type* keys, int64_t first, int64_t some) {
                            multiply_rows<T>(q, rows, keys, size, size, some, to, first);
                        });
            if (args.weights) {
                add_weighed(tile, args.weights + token * heads + h, rows, count, scores + key);
                continue;
            }
            for (int64_t r = 0; r < rows; ++r)
                keep_best(to[r], key, args.block_size, count, scores + (h + r) * candidates);
        }
    }
}

// Scores the candidates [begin, end) of a token, of as many as it sees.
void score(const IndexChooseArgs& args, int64_t token, int64_t begin, int64_t end, float* scores,
           float* tile) {
    const Lists lists(args);
    const float none = args.weights ? 0.0f : -INFINITY;
    const int64_t past = min64(round_up(end, 8), lists.candidates);
    for (int64_t i = 0; i < lists.count; ++i)
        for (int64_t c = begin; c < past; ++c) scores[i * lists.candidates + c] = none;
    const int64_t first = begin * args.block_size;
    const int64_t last = min64(end * args.block_size, keys_seen(args, token));
    switch (static_cast<Element>(args.pages.element)) {
        case Element::kBfloat16:
            score_keys<Bfloat16Rows>(args, token, first, last, scores, tile);
            break;
        case Element::kFloat16:
            score_keys<Float16Rows>(args, token, first, last, scores, tile);
            break;
        default: score_keys<Float32Rows>(args, token, first, last, scores, tile); break;
    }
}

// A number whose order is that of `x`; both zeros are one, not-a-numbers have a place too.
uint32_t order_of(float x) {
    const uint32_t bits = float_bits(x + 0.0f);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// Writes the places of the `most` best of `count` scores, more than `most`: of equals the first.
void write_best(const float* scores, int64_t count, int64_t most, int32_t* chosen) {
    uint32_t least = 0, known = 0;  // The order of the last that is chosen, digit by digit.
    int64_t left = most;            // How many are chosen of those whose digits so far are its.
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t digits[256] = {};
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t order = order_of(scores[i]);
            if ((order & known) == least) ++digits[order >> shift & 255];
        }
        uint32_t digit = 255;
        for (; digits[digit] < left; --digit) left -= digits[digit];
        least |= digit << shift;
        known |= 255u << shift;
    }
    for (int64_t i = 0; i < count && most > 0; ++i) {
        const uint32_t order = order_of(scores[i]);
        if (order < least || (order == least && left == 0)) continue;
        left -= order == least;
        *chosen++ = static_cast<int32_t>(i);
        --most;
    }
}

// Candidates of a token.
int64_t num_candidates(const IndexChooseArgs& args, int64_t token) {
    return (keys_seen(args, token) + args.block_size - 1) / args.block_size;
}

void choose(const IndexChooseArgs& args, int64_t token, float* scores) {
    const Lists lists(args);
    const int64_t count = num_candidates(args, token);
    for (int64_t i = 0; i < lists.count; ++i) {
        float* own = scores + i * lists.candidates;
        int32_t* chosen = args.chosen + (token * lists.count + i) * args.most;
        if (count > args.most) {
            for (int64_t c = count - args.num_local; c < count; ++c) own[c] = INFINITY;
            write_best(own, count, args.most, chosen);
            continue;
        }
        for (int64_t j = 0; j < args.most; ++j)
            chosen[j] = j < count ? static_cast<int32_t>(j) : -1;
    }
}

void choose_nothing(const IndexChooseArgs& args, int64_t token) {
    const int64_t count = Lists(args).count * args.most;
    for (int64_t j = 0; j < count; ++j) args.chosen[token * count + j] = -1;
}

// All of a token.
void run_token(const void* untyped, int64_t token, const Worker& worker) {
    const auto& args = *static_cast<const IndexChooseArgs*>(untyped);
    if (!args.rows.is_real(token)) return choose_nothing(args, token);
    auto* tile = reinterpret_cast<float*>(worker.local);
    float* scores = tile + kMostRows * kTile;
    const int64_t count = num_candidates(args, token);
    if (count > args.most) score(args, token, 0, count, scores, tile);
    choose(args, token, scores);
}

int64_t candidates_a_chunk(const IndexChooseArgs& args) {
    return max64(8, round_up(kKeysAChunk / args.block_size, 8));
}

int64_t chunks_a_token(const IndexChooseArgs& args) {
    const int64_t some = candidates_a_chunk(args);
    return (Lists(args).candidates + some - 1) / some;
}

float* shared_scores(const IndexChooseArgs& args, int64_t token, const Worker& worker) {
    return reinterpret_cast<float*>(worker.shared) + token * Lists(args).scores();
}

void run_scores(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const IndexChooseArgs*>(untyped);
    const int64_t token = chunk / chunks_a_token(args), some = candidates_a_chunk(args);
    if (!args.rows.is_real(token)) return;
    const int64_t count = num_candidates(args, token);
    const int64_t begin = chunk % chunks_a_token(args) * some;
    if (count <= args.most || begin >= count) return;
    score(args, token, begin, min64(begin + some, count), shared_scores(args, token, worker),
          reinterpret_cast<float*>(worker.local));
}

void run_choice(const void* untyped, int64_t token, const Worker& worker) {
    const auto& args = *static_cast<const IndexChooseArgs*>(untyped);
    if (!args.rows.is_real(token)) return choose_nothing(args, token);
    choose(args, token, shared_scores(args, token, worker));
}

}  // namespace

void plan_index_prepare(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<IndexPrepareArgs>(untyped);
    list.need_local(static_cast<size_t>(args.pages.head_dim) * sizeof(float));
    list.add(run_prepare, untyped, args.tokens);
}

void plan_index_choose(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<IndexChooseArgs>(untyped);
    const int64_t scores = Lists(args).scores(), tile = kMostRows * kTile;
    if (args.tokens * scores > kSharedScores) {
        list.need_local(static_cast<size_t>(tile + scores) * sizeof(float));
        list.add(run_token, untyped, args.tokens);
        return;
    }
    list.need_local(static_cast<size_t>(tile) * sizeof(float));
    list.need_shared(static_cast<size_t>(args.tokens * scores) * sizeof(float));
    list.add(run_scores, untyped, args.tokens * chunks_a_token(args));
    list.add(run_choice, untyped, args.tokens);
}

}  // namespace headstock
