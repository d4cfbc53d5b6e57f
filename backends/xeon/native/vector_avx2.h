// Vector helpers of the AVX2 kernels.
#pragma once

#include <immintrin.h>

#include "numbers.h"

namespace headstock {

static inline float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline float max8(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

static inline __m256 abs8(__m256 v) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}

// e^x to about one unit in the last place; -inf gives 0, beyond e^88 saturates.
// Cephes' method: x = n ln 2 + f in two steps, a polynomial of degree 6 for e^f, exponent by bits.
static inline __m256 exp8(__m256 x) {
    const __m256 is_zero = _mm256_cmp_ps(x, _mm256_set1_ps(-87.33f), _CMP_LT_OQ);
    x = _mm256_min_ps(x, _mm256_set1_ps(88.37f));
    x = _mm256_max_ps(x, _mm256_set1_ps(-87.33f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    f = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), f);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, f), f, f);
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(
        _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(is_zero, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

// tanh x to some 1e-7: by exponentials, and near 0, where these would cancel, by its series.
static inline __m256 tanh8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 e = exp8(_mm256_add_ps(x, x));
    const __m256 far = _mm256_sub_ps(
        one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
    const __m256 s = _mm256_mul_ps(x, x);
    __m256 p = _mm256_set1_ps(-17.0f / 315.0f);
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(2.0f / 15.0f));
    p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(-1.0f / 3.0f));
    p = _mm256_fmadd_ps(p, s, one);
    const __m256 is_near = _mm256_cmp_ps(abs8(x), _mm256_set1_ps(0.2f), _CMP_LT_OQ);
    return _mm256_blendv_ps(far, _mm256_mul_ps(p, x), is_near);
}

// A mask for the first `count` of 8 lanes.
// log(1 + e^x): e^-|x| lies in (0, 1], whose log(1 + u) = 2 atanh(u / (2 + u)) is a short series.
static inline __m256 softplus8(__m256 x) {
    const __m256 u = exp8(_mm256_sub_ps(_mm256_setzero_ps(), abs8(x)));
    const __m256 s = _mm256_div_ps(u, _mm256_add_ps(_mm256_set1_ps(2.0f), u));
    const __m256 square = _mm256_mul_ps(s, s);
    __m256 p = _mm256_set1_ps(1.0f / 15.0f);
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.0f / 13.0f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.0f / 11.0f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.0f / 9.0f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.0f / 7.0f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.0f / 5.0f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.0f / 3.0f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.0f));
    const __m256 above = _mm256_max_ps(x, _mm256_setzero_ps());
    return _mm256_fmadd_ps(_mm256_add_ps(s, s), p, above);
}

static inline __m256i first_lanes(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

static inline __m256 load_bf16(const uint16_t* from) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline __m256 load_half(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}

}  // namespace headstock
