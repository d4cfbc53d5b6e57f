// The frame of every matrix product: chunks, panels, rows of activations, bias.
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

// How a product is cut into chunks; from the arguments alone.
struct Grid {
    int64_t panels_per_chunk;
    int64_t rows_per_chunk;
    int64_t num_row_chunks;
    int64_t num_chunks;
};

constexpr int64_t kChunkBytes = 64 << 10;     // Of weights, for few rows: some microseconds.
constexpr int64_t kActivationBytes = 256 << 10;  // Of activations, so that they stay in L2.
constexpr int64_t kMinChunks = 16;

inline Grid grid_of(const LinearArgs& args) {
    const Weight& weight = *args.weight;
    Grid grid;
    const int64_t rows = round_up(kActivationBytes / (weight.in_features * 4 + 1), 12);
    grid.rows_per_chunk = max64(24, min64(240, rows));
    grid.num_row_chunks = (args.m + grid.rows_per_chunk - 1) / grid.rows_per_chunk;
    const int64_t weights = kChunkBytes / max64(1, args.m / 16);
    grid.panels_per_chunk = max64(1, min64(weights / weight.panel_bytes,
                                           weight.num_panels / kMinChunks));
    const int64_t panel_chunks =
        (weight.num_panels + grid.panels_per_chunk - 1) / grid.panels_per_chunk;
    grid.num_chunks = panel_chunks * grid.num_row_chunks;
    return grid;
}

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
void run_gemm(const void* untyped, int64_t chunk, const Worker& worker) {
    const LinearArgs& args = *static_cast<const LinearArgs*>(untyped);
    const Grid grid = grid_of(args);
    const int64_t first_panel = chunk / grid.num_row_chunks * grid.panels_per_chunk;
    const int64_t first_row = chunk % grid.num_row_chunks * grid.rows_per_chunk;
    const int64_t last_panel = min64(first_panel + grid.panels_per_chunk, args.weight->num_panels);
    const int64_t last_row = min64(first_row + grid.rows_per_chunk, args.m);
    for (int64_t p = first_panel; p < last_panel; ++p) {
        int64_t row = first_row;
        for (; row + Micro::kRows <= last_row; row += Micro::kRows)
            multiply_block<Micro, Micro::kRows>(args, worker.shared, p, row);
        multiply_rest<Micro, Micro::kRows - 1>(args, worker.shared, p, row, last_row - row);
    }
}

template <class Micro>
void plan_gemm(const LinearArgs& args, PhaseList& list) {
    list.add(run_gemm<Micro>, &args, grid_of(args).num_chunks);
}

}  // namespace
}  // namespace headstock
