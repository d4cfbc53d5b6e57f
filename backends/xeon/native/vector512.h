// The 512-bit instructions that kernels use, under names of our own; or, with HS_MODEL, a scalar
// model of each.
//
// Kernels for AVX-512 and AMX are compiled twice: for the processors that have it, and as models
// that run anywhere. The model is exact: integers wrap as the instructions do, float operations
// round where they round. So tests on a machine without these units still run the kernels' own
// loops, indexes and layouts. What the model cannot show is speed, and errors in this file itself.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

#ifdef HS_MODEL
#define HS_KERNEL(name) name##Model
#define HS_NAME(name) name "-model"
#else
#include <immintrin.h>
#define HS_KERNEL(name) name
#define HS_NAME(name) name
#endif

namespace headstock {
namespace {

#ifndef HS_MODEL

using Floats = __m512;   // 16 float32
using Ints = __m512i;    // 16 int32, or what else has 64 bytes

inline Floats zero_floats() { return _mm512_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline Floats all_floats(float x) { return _mm512_set1_ps(x); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
// a * b + c, rounded once.
inline Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats load_halves(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }

inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
// 32 int8 to int16.
inline Ints load_widened(const void* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
// 256 * high + low.
inline Ints add_shifted(Ints high, Ints low) {
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}
inline Ints low_nibbles(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Ints high_nibbles(Ints v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#ifdef __AVX512VNNI__
// Adds two products of int16 to each int32.
inline Ints add_products_of_2(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
// Adds four products of uint8 (of `a`) and int8 (of `b`) to each int32.
inline Ints add_products_of_4(Ints sum, Ints a, Ints b) { return _mm512_dpbusd_epi32(sum, a, b); }
#endif

#ifdef __AVX512BF16__
// Adds two products of bfloat16 to each float32: the second pair's first, each sum rounded.
inline Floats add_products_of_bf16(Floats sum, Ints a, Ints b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#endif

#else  // HS_MODEL

struct Floats { float at[16]; };
struct Ints { int32_t at[16]; };

template <class F>
inline Floats floats_of(F f) {
    Floats v;
    for (int i = 0; i < 16; ++i) v.at[i] = f(i);
    return v;
}

template <class F>
inline Ints ints_of(F f) {
    Ints v;
    for (int i = 0; i < 16; ++i) v.at[i] = f(i);
    return v;
}

// Element `i` of the 64 bytes, read as T.
template <class T>
inline T element(const Ints& v, int i) {
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(v.at) + i * static_cast<int>(sizeof(T)), sizeof(T));
    return value;
}

// Adds as the processor does, wrapping.
inline int32_t wrap(int64_t sum) { return static_cast<int32_t>(static_cast<uint32_t>(sum)); }

inline Floats zero_floats() { return floats_of([](int) { return 0.0f; }); }
inline Floats load_floats(const float* p) { return floats_of([=](int i) { return p[i]; }); }
inline void store_floats(float* p, const Floats& v) { std::memcpy(p, v.at, 64); }
inline Floats all_floats(float x) { return floats_of([=](int) { return x; }); }
inline Floats times(const Floats& a, const Floats& b) {
    return floats_of([&](int i) { return a.at[i] * b.at[i]; });
}
inline Floats times_plus(const Floats& a, const Floats& b, const Floats& c) {
    return floats_of([&](int i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
}
inline Floats load_halves(const void* p) {
    return floats_of([=](int i) {
        uint16_t half;
        std::memcpy(&half, static_cast<const char*>(p) + 2 * i, 2);
        return half_to_float(half);
    });
}
inline Floats to_floats(const Ints& v) {
    return floats_of([&](int i) { return static_cast<float>(v.at[i]); });
}

inline Ints zero_ints() { return ints_of([](int) { return 0; }); }
inline Ints load_ints(const void* p) {
    Ints v;
    std::memcpy(v.at, p, 64);
    return v;
}
inline Ints all_ints(int32_t x) { return ints_of([=](int) { return x; }); }
inline Ints load_widened(const void* p) {
    int16_t wide[32];
    for (int i = 0; i < 32; ++i) wide[i] = static_cast<const int8_t*>(p)[i];
    return load_ints(wide);
}
inline Ints add_shifted(const Ints& high, const Ints& low) {
    return ints_of([&](int i) { return wrap(int64_t{high.at[i]} * 256 + low.at[i]); });
}
inline Ints low_nibbles(const Ints& v) { return ints_of([&](int i) { return v.at[i] & 0x0f0f0f0f; }); }
inline Ints high_nibbles(const Ints& v) {
    return ints_of([&](int i) {
        return static_cast<int32_t>(static_cast<uint32_t>(v.at[i]) >> 4 & 0x0f0f0f0f);
    });
}
inline void prefetch(const void*) {}

inline Ints add_products_of_2(const Ints& sum, const Ints& a, const Ints& b) {
    return ints_of([&](int i) {
        int64_t total = sum.at[i];
        for (int j = 0; j < 2; ++j)
            total += int32_t{element<int16_t>(a, 2 * i + j)} * element<int16_t>(b, 2 * i + j);
        return wrap(total);
    });
}
inline Ints add_products_of_4(const Ints& sum, const Ints& a, const Ints& b) {
    return ints_of([&](int i) {
        int64_t total = sum.at[i];
        for (int j = 0; j < 4; ++j)
            total += int32_t{element<uint8_t>(a, 4 * i + j)} * element<int8_t>(b, 4 * i + j);
        return wrap(total);
    });
}
inline Floats add_products_of_bf16(const Floats& sum, const Ints& a, const Ints& b) {
    return floats_of([&](int i) {
        float total = sum.at[i];
        for (int j = 1; j >= 0; --j)
            total = std::fma(bf16_to_float(element<uint16_t>(a, 2 * i + j)),
                             bf16_to_float(element<uint16_t>(b, 2 * i + j)), total);
        return total;
    });
}

#endif

}  // namespace
}  // namespace headstock
