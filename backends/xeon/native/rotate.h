// Rotating pairs of features by their position's angles.
#pragma once

#include "vector_avx2.h"

namespace headstock {

// Rotates the pairs of neighbours among the first `2 half` features.
static inline void rotate_neighbours(float* x, const float* cosines, const float* sines,
                                     int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float first = x[2 * i], second = x[2 * i + 1];
        x[2 * i] = first * cosines[i] - second * sines[i];
        x[2 * i + 1] = second * cosines[i] + first * sines[i];
    }
}

// Rotates pairs of one feature of each half.
static inline void rotate_halves(float* x, const float* cosines, const float* sines,
                                 int64_t half) {
    for (int64_t i = 0; i < half; i += 8) {
        const __m256i lanes = first_lanes(half - i);
        const __m256 c = _mm256_maskload_ps(cosines + i, lanes);
        const __m256 s = _mm256_maskload_ps(sines + i, lanes);
        const __m256 first = _mm256_maskload_ps(x + i, lanes);
        const __m256 second = _mm256_maskload_ps(x + half + i, lanes);
        _mm256_maskstore_ps(x + i, lanes,
                            _mm256_sub_ps(_mm256_mul_ps(first, c), _mm256_mul_ps(second, s)));
        _mm256_maskstore_ps(x + half + i, lanes,
                            _mm256_add_ps(_mm256_mul_ps(second, c), _mm256_mul_ps(first, s)));
    }
}

// Rotates the first `2 half` features; cos_sin has cosines, then sines.
static inline void rotate_pairs(float* x, const float* cos_sin, int64_t half, bool is_interleaved) {
    if (is_interleaved) rotate_neighbours(x, cos_sin, cos_sin + half, half);
    else rotate_halves(x, cos_sin, cos_sin + half, half);
}

}  // namespace headstock
