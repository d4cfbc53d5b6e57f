// Attention of some heads of one token to what lies anywhere in pages, and was chosen for it.
//
// What a token reads is cut into parts at fixed places. A part's keys and values are gathered,
// widened and worked off as a split of attention is; parts are merged in order. Whether one chunk
// does all parts of a token or each is done by another, an output element's bits are the same.
#pragma once

#include "attention.h"
#include "kernels.h"
#include "row_blocks.h"
#include "softmax.h"

namespace headstock {

constexpr int64_t kMostStates = 1 << 24;  // Most numbers that parts leave for each other.

struct GatheredShape {
    int64_t tokens;
    int64_t num_heads;
    int64_t together;    // Heads that a chunk works off; kMostRows at most.
    int64_t parts;
    int64_t key_size;
    int64_t value_size;
    bool has_values;     // Else a value is the first features of its key.

    int64_t blocks() const { return num_heads / together; }
    int64_t state_size() const { return value_size + 2; }  // o, m, l

    bool is_spread(int num_threads) const {
        return parts > 1 && tokens * blocks() < 8 * num_threads &&
               tokens * num_heads * parts * state_size() <= kMostStates;
    }

    size_t local_bytes() const {
        const int64_t tile = kSplit * (key_size + (has_values ? value_size : 0));
        const int64_t of_head = key_size + kSplit + 3 * state_size();
        return static_cast<size_t>(tile + together * of_head) * sizeof(float);
    }
};

// The largest number of heads, kMostRows at most, that divides `heads`.
static inline int64_t heads_together(int64_t heads) {
    int64_t most = min64(heads, kMostRows);
    while (heads % most != 0) --most;
    return most;
}

// Scratch of a chunk, and what it computes.
class GatheredTile {
public:
    GatheredTile(const GatheredShape& shape, char* memory) : shape_(shape) {
        keys = reinterpret_cast<float*>(memory);
        values = shape.has_values ? keys + kSplit * shape.key_size : keys;
        float* at = values + kSplit * (shape.has_values ? shape.value_size : shape.key_size);
        for (int64_t r = 0; r < shape.together; ++r) {
            q_[r] = at;
            scores_[r] = at + shape.key_size;
            o_[r] = scores_[r] + kSplit;
            at = o_[r] + 3 * shape.state_size();
        }
    }

    // Takes queries, `stride` from head to head, times the scale of scores.
    void load_queries(const float* q, int64_t stride, float scale) {
        const __m256 factor = _mm256_set1_ps(scale);
        for (int64_t r = 0; r < shape_.together; ++r)
            for (int64_t d = 0; d < shape_.key_size; d += 8)
                _mm256_storeu_ps(q_[r] + d,
                                 _mm256_mul_ps(_mm256_loadu_ps(q + r * stride + d), factor));
    }

    // Attends to the `count` tokens that lie in `keys` and `values`, beside those of the part before.
    void attend(int64_t count) {
        if (count == 0) return;
        const int64_t size = shape_.value_size, stride = shape_.has_values ? size : shape_.key_size;
        multiply_rows<Float32Rows>(q_, shape_.together, keys, shape_.key_size, shape_.key_size,
                                   count, scores_, 0);
        float m[kMostRows], l[kMostRows];
        for (int64_t r = 0; r < shape_.together; ++r) {
            soften(scores_[r], count, 0, count, m + r, l + r);
            std::memset(o_[r], 0, static_cast<size_t>(size) * sizeof(float));
        }
        add_rows<Float32Rows>(scores_, shape_.together, values, stride, size, count, o_, 0);
        for (int64_t r = 0; r < shape_.together; ++r)
            merge(part(r), part(r) + size, part(r) + size + 1, o_[r], m[r], l[r], size);
    }

    // What a head has of a part, and of all parts: o [value_size], m, l.
    float* part(int64_t r) { return o_[r] + shape_.state_size(); }
    float* total(int64_t r) { return o_[r] + 2 * shape_.state_size(); }

    void clear_parts() {
        for (int64_t r = 0; r < shape_.together; ++r) clear(part(r));
    }
    void clear_totals() {
        for (int64_t r = 0; r < shape_.together; ++r) clear(total(r));
    }

    float* keys;    // [kSplit, key_size]
    float* values;  // [kSplit, value_size]

private:
    void clear(float* state) const {
        clear_total(state, state + shape_.value_size, state + shape_.value_size + 1,
                    shape_.value_size);
    }

    const GatheredShape shape_;
    float* q_[kMostRows];
    float* scores_[kMostRows];
    float* o_[kMostRows];
};

static inline void merge_state(float* total, const float* state, int64_t size) {
    merge(total, total + size, total + size + 1, state, state[size], state[size + 1], size);
}

// The phases of a kernel K: its Args, and of these
//   shape(args), is_real(args, token), sink(args, head), output(args, token, head),
//   load(args, token, head, tile): the queries of the heads from `head` on, and
//   attend(args, token, head, part, tile): gathers what they read of a part, and attends to it.
template <class K>
struct GatheredPhases {
    using Args = typename K::Args;

    static void run_token(const void* untyped, int64_t chunk, const Worker& worker) {
        const auto& args = *static_cast<const Args*>(untyped);
        const GatheredShape shape = K::shape(args);
        const int64_t token = chunk / shape.blocks(), head = chunk % shape.blocks() * shape.together;
        if (!K::is_real(args, token)) return;
        GatheredTile tile(shape, worker.local);
        K::load(args, token, head, tile);
        tile.clear_totals();
        for (int64_t part = 0; part < shape.parts; ++part) {
            tile.clear_parts();
            K::attend(args, token, head, part, tile);
            for (int64_t r = 0; r < shape.together; ++r)
                merge_state(tile.total(r), tile.part(r), shape.value_size);
        }
        for (int64_t r = 0; r < shape.together; ++r)
            finish_head(args, shape, token, head + r, tile.total(r));
    }

    static void run_part(const void* untyped, int64_t chunk, const Worker& worker) {
        const auto& args = *static_cast<const Args*>(untyped);
        const GatheredShape shape = K::shape(args);
        const int64_t part = chunk % shape.parts, place = chunk / shape.parts;
        const int64_t token = place / shape.blocks(), head = place % shape.blocks() * shape.together;
        if (!K::is_real(args, token)) return;
        GatheredTile tile(shape, worker.local);
        K::load(args, token, head, tile);
        tile.clear_parts();
        K::attend(args, token, head, part, tile);
        for (int64_t r = 0; r < shape.together; ++r)
            std::memcpy(state_at(shape, worker, token, head + r, part), tile.part(r),
                        static_cast<size_t>(shape.state_size()) * sizeof(float));
    }

    static void run_merge(const void* untyped, int64_t chunk, const Worker& worker) {
        const auto& args = *static_cast<const Args*>(untyped);
        const GatheredShape shape = K::shape(args);
        const int64_t token = chunk / shape.num_heads, head = chunk % shape.num_heads;
        if (!K::is_real(args, token)) return;
        auto* total = reinterpret_cast<float*>(worker.local);
        const int64_t size = shape.value_size;
        clear_total(total, total + size, total + size + 1, size);
        for (int64_t part = 0; part < shape.parts; ++part)
            merge_state(total, state_at(shape, worker, token, head, part), size);
        finish_head(args, shape, token, head, total);
    }

    static void plan(const int64_t* untyped, PhaseList& list) {
        const GatheredShape shape = K::shape(as<Args>(untyped));
        const int64_t chunks = shape.tokens * shape.blocks();
        list.need_local(shape.local_bytes());
        if (!shape.is_spread(list.num_threads)) {
            list.add(run_token, untyped, chunks);
            return;
        }
        const int64_t states = shape.tokens * shape.num_heads * shape.parts;
        list.need_shared(static_cast<size_t>(states * shape.state_size()) * sizeof(float));
        list.add(run_part, untyped, chunks * shape.parts);
        list.add(run_merge, untyped, shape.tokens * shape.num_heads);
    }

private:
    static float* state_at(const GatheredShape& shape, const Worker& worker, int64_t token,
                           int64_t head, int64_t part) {
        const int64_t at = (token * shape.num_heads + head) * shape.parts + part;
        return reinterpret_cast<float*>(worker.shared) + at * shape.state_size();
    }

    static void finish_head(const Args& args, const GatheredShape& shape, int64_t token,
                            int64_t head, const float* state) {
        const int64_t size = shape.value_size;
        finish(state, state[size], state[size + 1], K::sink(args, head), size,
               K::output(args, token, head));
    }
};

}  // namespace headstock
