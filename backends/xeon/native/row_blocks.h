// Products of some rows with rows of a table, and weighted sums of a table's rows, in blocks that
// stay in registers. An element's sum runs in order whatever the block, so its bits are the same.
#pragma once

#include "vector_avx2.h"

namespace headstock {

// How a table's elements are loaded, 8 at a time.
struct Float32Rows {
    using Type = float;
    static __m256 load(const float* p) { return _mm256_loadu_ps(p); }
};
struct Bfloat16Rows {
    using Type = uint16_t;
    static __m256 load(const uint16_t* p) { return load_bf16(p); }
};
struct Float16Rows {
    using Type = uint16_t;
    static __m256 load(const uint16_t* p) { return load_half(p); }
};

constexpr int64_t kMostRows = 32;  // Rows that a call of multiply_rows or add_rows takes.

template <class T, int R, int K>
HS_INLINE void multiply_block(const float* const* x, const typename T::Type* table, int64_t stride,
                              int64_t size, float* const* y, int64_t first) {
    __m256 sum[R][K];
    unrolled<R>([&](auto r) { unrolled<K>([&](auto k) { sum[r][k] = _mm256_setzero_ps(); }); });
    for (int64_t d = 0; d < size; d += 8) {
        __m256 t[K];
        unrolled<K>([&](auto k) { t[k] = T::load(table + k * stride + d); });
        unrolled<R>([&](auto r) {
            const __m256 v = _mm256_loadu_ps(x[r] + d);
            unrolled<K>([&](auto k) { sum[r][k] = _mm256_fmadd_ps(v, t[k], sum[r][k]); });
        });
    }
    unrolled<R>([&](auto r) { unrolled<K>([&](auto k) { y[r][first + k] = sum8(sum[r][k]); }); });
}

template <class T, int R>
void multiply_some(const float* const* x, const typename T::Type* table, int64_t stride,
                   int64_t size, int64_t count, float* const* y, int64_t first) {
    int64_t k = 0;
    for (; k + 3 <= count; k += 3)
        multiply_block<T, R, 3>(x, table + k * stride, stride, size, y, first + k);
    for (; k < count; ++k)
        multiply_block<T, R, 1>(x, table + k * stride, stride, size, y, first + k);
}

// y[r][first + k] = x[r] · table[k] for `count` rows of the table; 8 divides `size`.
template <class T>
void multiply_rows(const float* const* x, int64_t rows, const typename T::Type* table,
                   int64_t stride, int64_t size, int64_t count, float* const* y, int64_t first) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
        multiply_some<T, 4>(x + r, table, stride, size, count, y + r, first);
    switch (rows - r) {
        case 3: multiply_some<T, 3>(x + r, table, stride, size, count, y + r, first); break;
        case 2: multiply_some<T, 2>(x + r, table, stride, size, count, y + r, first); break;
        case 1: multiply_some<T, 1>(x + r, table, stride, size, count, y + r, first); break;
        default: break;
    }
}

template <class T, int R, int V>
HS_INLINE void add_block(const float* const* weights, const typename T::Type* table, int64_t stride,
                         int64_t count, float* const* y, int64_t first, int64_t d) {
    __m256 sum[R][V];
    unrolled<R>([&](auto r) {
        unrolled<V>([&](auto i) { sum[r][i] = _mm256_loadu_ps(y[r] + d + 8 * i); });
    });
    table += d;
    for (int64_t k = 0; k < count; ++k, table += stride) {
        __m256 t[V];
        unrolled<V>([&](auto i) { t[i] = T::load(table + 8 * i); });
        unrolled<R>([&](auto r) {
            const __m256 w = _mm256_broadcast_ss(weights[r] + first + k);
            unrolled<V>([&](auto i) { sum[r][i] = _mm256_fmadd_ps(w, t[i], sum[r][i]); });
        });
    }
    unrolled<R>([&](auto r) {
        unrolled<V>([&](auto i) { _mm256_storeu_ps(y[r] + d + 8 * i, sum[r][i]); });
    });
}

template <class T, int R>
void add_some(const float* const* weights, const typename T::Type* table, int64_t stride,
              int64_t size, int64_t count, float* const* y, int64_t first) {
    int64_t d = 0;
    if constexpr (R == 1)
        for (; d + 64 <= size; d += 64)
            add_block<T, R, 8>(weights, table, stride, count, y, first, d);
    if constexpr (R <= 3)
        for (; d + 32 <= size; d += 32)
            add_block<T, R, 4>(weights, table, stride, count, y, first, d);
    for (; d + 16 <= size; d += 16)
        add_block<T, R, 2>(weights, table, stride, count, y, first, d);
    for (; d + 8 <= size; d += 8)
        add_block<T, R, 1>(weights, table, stride, count, y, first, d);
}

// y[r] += sum over k < count of weights[r][first + k] * table[k]; 8 divides `size`.
template <class T>
void add_rows(const float* const* weights, int64_t rows, const typename T::Type* table,
              int64_t stride, int64_t size, int64_t count, float* const* y, int64_t first) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6)
        add_some<T, 6>(weights + r, table, stride, size, count, y + r, first);
    switch (rows - r) {
        case 5: add_some<T, 5>(weights + r, table, stride, size, count, y + r, first); break;
        case 4: add_some<T, 4>(weights + r, table, stride, size, count, y + r, first); break;
        case 3: add_some<T, 3>(weights + r, table, stride, size, count, y + r, first); break;
        case 2: add_some<T, 2>(weights + r, table, stride, size, count, y + r, first); break;
        case 1: add_some<T, 1>(weights + r, table, stride, size, count, y + r, first); break;
        default: break;
    }
}

}  // namespace headstock
