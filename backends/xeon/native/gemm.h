// The frame of every matrix product: panels, rows of activations, bias. `product.cpp` cuts a product
// into the blocks that are multiplied here.
//
// Included by files compiled for different processors; everything is in an unnamed namespace so
// that each has its own copy. A `Micro` multiplies one panel by up to kRows rows:
//
//     static constexpr int kRows;   // Most rows at a time.
//     template <int R> static void multiply(const Weight&, const char* panel, const LinearArgs&,
//                                           const char* shared, int64_t row, float (*out)[kPanel]);
//
// Each output element is accumulated over the input features in order, by one accumulator (or a
// fixed few), whatever R is: a row's result does not depend on its neighbours.
#pragma once

#include <cstdint>

#include "numbers.h"
#include "weight.h"

namespace headstock {
namespace {

inline void store_row(const Weight& weight, int64_t panel, const float* out, float* y) {
    const int64_t first = panel * kPanel;
    const float* factor = weight.row_factor + first;
    const float* bias = weight.bias + first;
    const int64_t valid = min64(kPanel, weight.out_features - first);
    for (int64_t i = 0; i < valid; ++i) y[first + i] = out[i] * factor[i] + bias[i];
}

template <class Micro, int R>
inline void multiply_block(const LinearArgs& args, const char* shared, int64_t panel, int64_t row) {
    alignas(64) float out[R][kPanel];
    const Weight& weight = *args.weight;
    Micro::template multiply<R>(weight, weight.panel(panel), args, shared, row, out);
    for (int r = 0; r < R; ++r) store_row(weight, panel, out[r], args.y + (row + r) * args.y_stride);
}

template <class Micro, int R>
inline void multiply_rest(const LinearArgs& args, const char* shared, int64_t panel, int64_t row,
                          int64_t rest) {
    if constexpr (R > 0) {
        if (rest == R) multiply_block<Micro, R>(args, shared, panel, row);
        else multiply_rest<Micro, R - 1>(args, shared, panel, row, rest);
    }
}

template <class Micro>
void multiply(const LinearArgs& args, const Block& block, const char* shared) {
    for (int64_t p = block.first_panel; p < block.last_panel; ++p) {
        int64_t row = block.first_row;
        for (; row + Micro::kRows <= block.last_row; row += Micro::kRows)
            multiply_block<Micro, Micro::kRows>(args, shared, p, row);
        multiply_rest<Micro, Micro::kRows - 1>(args, shared, p, row, block.last_row - row);
    }
}

}  // namespace
}  // namespace headstock
