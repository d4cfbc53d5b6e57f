// Rows of numbers into pages of some element, and out of them.
#pragma once

#include "kernels.h"
#include "row_blocks.h"

namespace headstock {

// Stores `size` numbers as `element`, which is not in 8 bits.
static inline void store_row(char* to, int64_t element, const float* x, int64_t size) {
    if (element == static_cast<int64_t>(Element::kFloat32)) {
        std::memcpy(to, x, static_cast<size_t>(size) * sizeof(float));
        return;
    }
    auto* narrow = reinterpret_cast<uint16_t*>(to);
    const bool is_half = element == static_cast<int64_t>(Element::kFloat16);
    for (int64_t i = 0; i < size; ++i)
        narrow[i] = is_half ? _cvtss_sh(x[i], _MM_FROUND_TO_NEAREST_INT) : float_to_bf16(x[i]);
}

template <class T>
static inline void widen_row(const char* from, int64_t size, float* y) {
    const auto* x = reinterpret_cast<const typename T::Type*>(from);
    for (int64_t i = 0; i < size; i += 8) _mm256_storeu_ps(y + i, T::load(x + i));
}

// Loads `size` numbers that are stored as `element`; 8 divides `size`.
static inline void load_row(const char* from, int64_t element, int64_t size, float* y) {
    switch (static_cast<Element>(element)) {
        case Element::kBfloat16: widen_row<Bfloat16Rows>(from, size, y); break;
        case Element::kFloat16: widen_row<Float16Rows>(from, size, y); break;
        default: std::memcpy(y, from, static_cast<size_t>(size) * sizeof(float)); break;
    }
}

}  // namespace headstock
