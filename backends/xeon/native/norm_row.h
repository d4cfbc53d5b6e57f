// Normalising a row as the op rms_norm does.
#pragma once

#include "vector_avx2.h"

namespace headstock {

// y = x over its root mean square, times the weight; 8 divides `size`.
static inline void norm_row(const float* x, const float* weight, float eps, float* y,
                            int64_t size) {
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    const float mean = sum8(squares) / static_cast<float>(size);
    const __m256 inverse = _mm256_set1_ps(1.0f / std::sqrt(mean + eps));
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
    }
}

}  // namespace headstock
