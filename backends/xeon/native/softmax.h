// The softmax of attention, split by split: weights, and states (o, m, l) that are merged in order.
#pragma once

#include "vector_avx2.h"

namespace headstock {

// Turns a row's scores into weights relative to the largest one, and returns it and their sum.
// Of `count` tokens the row sees [begin, end).
static inline void soften(float* scores, int64_t count, int64_t begin, int64_t end, float* m,
                          float* l) {
    const int64_t size = round_up(count, 8);
    for (int64_t i = 0; i < begin; ++i) scores[i] = -INFINITY;
    for (int64_t i = max64(end, 0); i < size; ++i) scores[i] = -INFINITY;
    __m256 best = _mm256_set1_ps(-INFINITY);
    for (int64_t i = 0; i < size; i += 8) best = _mm256_max_ps(best, _mm256_loadu_ps(scores + i));
    const float largest = max8(best);
    *m = largest;
    const __m256 shift = _mm256_set1_ps(largest == -INFINITY ? 0.0f : largest);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 w = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + i), shift));
        _mm256_storeu_ps(scores + i, w);
        sum = _mm256_add_ps(sum, w);
    }
    *l = sum8(sum);
}

// Merges the state (o, m, l) of one more split into a row's total.
static inline void merge(float* total_o, float* total_m, float* total_l, const float* o, float m,
                         float l, int64_t size) {
    if (m == -INFINITY) return;
    const float largest = *total_m > m ? *total_m : m;
    const float keep = std::exp(*total_m - largest), take = std::exp(m - largest);
    const __m256 k = _mm256_set1_ps(keep), t = _mm256_set1_ps(take);
    for (int64_t d = 0; d < size; d += 8) {
        const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(total_o + d), k);
        _mm256_storeu_ps(total_o + d, _mm256_fmadd_ps(_mm256_loadu_ps(o + d), t, kept));
    }
    *total_l = std::fma(l, take, *total_l * keep);
    *total_m = largest;
}

static inline void clear_total(float* o, float* m, float* l, int64_t size) {
    std::memset(o, 0, static_cast<size_t>(size) * sizeof(float));
    *m = -INFINITY;
    *l = 0;
}

// Divides by the sum of exponentials, the sink's among them.
static inline void finish(const float* o, float m, float l, const float* sink, int64_t size,
                          float* y) {
    float factor = 1.0f;
    if (sink) {
        const float largest = *sink > m ? *sink : m;
        factor = std::exp(m - largest);
        l = l * factor + std::exp(*sink - largest);
    }
    const __m256 inverse = _mm256_set1_ps(factor / l);
    for (int64_t d = 0; d < size; d += 8)
        _mm256_storeu_ps(y + d, _mm256_mul_ps(_mm256_loadu_ps(o + d), inverse));
}

}  // namespace headstock
