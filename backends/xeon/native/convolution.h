// The causal convolution that comes before recurrent states, and their scalar functions.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "numbers.h"

namespace headstock {

constexpr int64_t kConvFeatures = 256;  // That a chunk convolves.

static inline float silu(float x) { return x / (1.0f + std::exp(-x)); }
static inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
static inline float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

static inline int64_t conv_blocks(int64_t features) {
    return (features + kConvFeatures - 1) / kConvFeatures;
}

// Floats of scratch: the inputs found [W - 1, features], then the weights by age [W, features].
static inline int64_t conv_scratch(int64_t width) { return (2 * width - 1) * kConvFeatures; }

// A row's tokens and what was kept of those before them. C features, W tokens of the convolution.
struct ConvRow {
    const float* x;        // [tokens, C]
    int64_t x_stride;
    float* y;              // [tokens, C], contiguous.
    const float* weights;  // [C, W]
    const float* bias;     // [C]; null: none.
    const float* found;    // The inputs before [W - 1, C]; null: zeros.
    float* left;           // Where the last inputs go [W - 1, C]; may be where they were found.
    int64_t tokens;
    int64_t size;          // C
    int64_t width;         // W
};

// The row of a kernel whose pages begin with the inputs of its convolution.
template <class Args>
ConvRow conv_row(const Args& args, const float* x, int64_t x_stride, int64_t row) {
    const int64_t size = args.num_features(), first = args.query_starts[row];
    return {x + first * x_stride, x_stride, args.mixed + first * size, args.conv, nullptr,
            args.is_new(row) ? nullptr : args.found(row), args.left(row), args.num_tokens(row),
            size, args.kernel_size};
}

// Reads what was found, and the weights, of `count` features from `begin` on, into `scratch`.
static inline void read_conv(const ConvRow& row, int64_t begin, int64_t count, float* scratch) {
    const int64_t kept = row.width - 1;
    const auto bytes = static_cast<size_t>(count) * sizeof(float);
    for (int64_t i = 0; i < kept; ++i) {
        float* to = scratch + i * kConvFeatures;
        if (row.found) std::memcpy(to, row.found + i * row.size + begin, bytes);
        else std::memset(to, 0, bytes);
    }
    for (int64_t i = 0; i < row.width; ++i)
        for (int64_t c = 0; c < count; ++c)
            scratch[(kept + i) * kConvFeatures + c] = row.weights[(begin + c) * row.width + i];
}

// Convolves block `block` of the features, then silu; leaves the last inputs.
static inline void convolve(const ConvRow& row, int64_t block, float* scratch) {
    const int64_t begin = block * kConvFeatures, kept = row.width - 1;
    const int64_t count = min64(kConvFeatures, row.size - begin);
    read_conv(row, begin, count, scratch);
    const float* weights = scratch + kept * kConvFeatures;
    const float* x = row.x + begin;
    float* y = row.y + begin;
    const auto input = [&](int64_t t) {
        return t < 0 ? scratch + (kept + t) * kConvFeatures : x + t * row.x_stride;
    };
    for (int64_t t = 0; t < row.tokens; ++t, y += row.size) {
        for (int64_t c = 0; c < count; ++c) y[c] = row.bias ? row.bias[begin + c] : 0;
        for (int64_t i = 0; i < row.width; ++i) {
            const float *from = input(t - kept + i), *w = weights + i * kConvFeatures;
            for (int64_t c = 0; c < count; ++c) y[c] += w[c] * from[c];
        }
        for (int64_t c = 0; c < count; ++c) y[c] = silu(y[c]);
    }
    for (int64_t i = 0; i < kept; ++i)
        std::memcpy(row.left + i * row.size + begin, input(row.tokens - kept + i),
                    static_cast<size_t>(count) * sizeof(float));
}

}  // namespace headstock
