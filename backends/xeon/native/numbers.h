// Scalar conversions between number formats, and small helpers; portable.
//
// Everything is `static inline`: a file compiled for a newer processor must not lend its copy of a
// shared function to the others.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace headstock {

// For helpers that get accumulators by reference: these stay in registers only when the helper is
// inlined before the compiler decides where they live.
#define HS_INLINE static inline __attribute__((always_inline))

// Calls f(0) .. f(N - 1) with constants, always unrolled: accumulators indexed by them stay in
// registers, which a loop of 6 does not get from every compiler.
template <int N, int I = 0, class F>
HS_INLINE void unrolled(F&& f) {
    if constexpr (I < N) {
        f(std::integral_constant<int, I>{});
        unrolled<N, I + 1>(f);
    }
}

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline float bf16_to_float(uint16_t bits) { return bits_float(uint32_t{bits} << 16); }

// Rounds to nearest, ties to even; not-a-number stays one.
static inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16;
    const uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
    if (exponent == 31) return bits_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {
        const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -tiny : tiny;
    }
    return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Rounds to nearest, ties to even; too large becomes infinite.
static inline uint16_t float_to_half(float value) {
    const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (size < 0x38800000)  // Subnormal: units of 2^-24; the processor rounds to even.
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(
            std::nearbyintf(bits_float(size) * 0x1p24f)));
    const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
    return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

// Returns 2^e such that `largest` / 2^e is in [2^13, 2^14): scales stored as float16 relative to
// it lose nothing when they were float16 before, and little otherwise.
static inline float half_factor(float largest) {
    if (!(largest > 0) || !std::isfinite(largest)) return 1.0f;
    int exponent;
    std::frexp(largest, &exponent);
    const int shift = exponent - 14;
    return std::ldexp(1.0f, shift < -126 ? -126 : shift);
}

}  // namespace headstock
