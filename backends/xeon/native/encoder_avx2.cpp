// Kernels of encoders: norms with a shift, embeddings by place and type, pooling.
#include "encoder.h"

#include <cmath>

#include "vector_avx2.h"

namespace headstock {
namespace {

// Calls f(i, mask) for blocks of 8 elements of a row, the last one with the lanes that there are.
template <class F>
inline void for_blocks(int64_t size, F f) {
    int64_t i = 0;
    const __m256i whole = _mm256_set1_epi32(-1);
    for (; i + 8 <= size; i += 8) f(i, whole);
    if (i < size) f(i, first_lanes(size - i));
}

inline __m256 load(const float* from, __m256i mask) { return _mm256_maskload_ps(from, mask); }

void add_to(float* y, const float* x, int64_t size) {
    for_blocks(size, [&](int64_t i, __m256i mask) {
        _mm256_maskstore_ps(y + i, mask, _mm256_add_ps(load(y + i, mask), load(x + i, mask)));
    });
}

void scale_by(float* y, float factor, int64_t size) {
    const __m256 factors = _mm256_set1_ps(factor);
    for_blocks(size, [&](int64_t i, __m256i mask) {
        _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(load(y + i, mask), factors));
    });
}

float sum_of_squares(const float* x, int64_t size) {
    __m256 sum = _mm256_setzero_ps();
    for_blocks(size, [&](int64_t i, __m256i mask) {
        const __m256 v = load(x + i, mask);
        sum = _mm256_fmadd_ps(v, v, sum);
    });
    return sum8(sum);
}

void layer_norm_row(const LayerNormArgs& args, const float* x, float* y) {
    const int64_t size = args.size;
    __m256 sum = _mm256_setzero_ps();
    for_blocks(size, [&](int64_t i, __m256i mask) { sum = _mm256_add_ps(sum, load(x + i, mask)); });
    const __m256 mean = _mm256_set1_ps(sum8(sum) / static_cast<float>(size));
    __m256 squares = _mm256_setzero_ps();
    for_blocks(size, [&](int64_t i, __m256i mask) {
        const __m256 v = _mm256_sub_ps(load(x + i, mask), mean);
        const __m256 inside = _mm256_and_ps(v, _mm256_castsi256_ps(mask));
        squares = _mm256_fmadd_ps(inside, inside, squares);
    });
    const float variance = sum8(squares) / static_cast<float>(size);
    const float root = std::sqrt(variance + static_cast<float>(args.eps));
    const __m256 inverse = _mm256_set1_ps(1.0f / root);
    for_blocks(size, [&](int64_t i, __m256i mask) {
        const __m256 v = _mm256_mul_ps(_mm256_sub_ps(load(x + i, mask), mean), inverse);
        const __m256 shift = args.bias ? load(args.bias + i, mask) : _mm256_setzero_ps();
        _mm256_maskstore_ps(y + i, mask, _mm256_fmadd_ps(v, load(args.weight + i, mask), shift));
    });
}

void run_layer_norm(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const LayerNormArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float* x = args.x + row * args.x_stride;
        if (args.residual) {
            float* residual = args.residual + row * args.residual_stride;
            add_to(residual, x, args.size);
            x = residual;
        }
        layer_norm_row(args, x, args.y + row * args.size);
    }
}

void run_activate(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ActivateArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row)
        activate_row(args.activation, args.x + row * args.stride, nullptr,
                     args.y + row * args.size, args.size);
}

void run_embed(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const EmbedArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows), size = args.size;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const int64_t id = args.ids[row];
        const float* word = args.words + id % args.num_words * size;
        const float* type = args.types + id / args.num_words * size;
        const float* place = args.places + (args.positions[row] + args.first_place) * size;
        float* y = args.y + row * size;
        for_blocks(size, [&](int64_t i, __m256i mask) {
            const __m256 sum = _mm256_add_ps(load(word + i, mask), load(type + i, mask));
            _mm256_maskstore_ps(y + i, mask, _mm256_add_ps(sum, load(place + i, mask)));
        });
    }
}

void run_pool(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const PoolArgs*>(untyped);
    const int64_t row = args.picked ? args.picked[chunk] : chunk, size = args.size;
    const auto kind = static_cast<PoolKind>(args.kind);
    int64_t begin = args.is_cut ? row : args.query_starts[row];
    int64_t end = args.is_cut ? row + 1 : args.query_starts[row + 1];
    if (!args.is_cut && kind == PoolKind::kLast) begin = end - 1;
    if (!args.is_cut && kind == PoolKind::kFirst) end = begin + 1;
    float* y = args.y + chunk * size;
    std::memcpy(y, args.hidden + begin * args.stride, static_cast<size_t>(size) * sizeof(float));
    for (int64_t token = begin + 1; token < end; ++token)
        add_to(y, args.hidden + token * args.stride, size);
    if (end - begin > 1) scale_by(y, 1.0f / static_cast<float>(end - begin), size);
    if (!args.is_normalized) return;
    const float length = std::sqrt(sum_of_squares(y, size));
    scale_by(y, 1.0f / (length < 1e-12f ? 1e-12f : length), size);
}

}  // namespace

void plan_layer_norm(const int64_t* args, PhaseList& list) {
    list.add_rows(run_layer_norm, args, as<LayerNormArgs>(args).rows, kRowsPerChunk);
}

void plan_activate(const int64_t* args, PhaseList& list) {
    list.add_rows(run_activate, args, as<ActivateArgs>(args).rows, kRowsPerChunk);
}

void plan_embed(const int64_t* args, PhaseList& list) {
    list.add_rows(run_embed, args, as<EmbedArgs>(args).rows, kRowsPerChunk);
}

void plan_pool(const int64_t* args, PhaseList& list) {
    list.add(run_pool, args, as<PoolArgs>(args).rows);
}

}  // namespace headstock
