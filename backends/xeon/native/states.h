// Arguments of the kernels whose rows keep one state each: short convolutions and Mamba 2.
#pragma once

#include "kernels.h"

namespace headstock {

// y = c conv(b x). A page holds the last products b x [W - 1, size].
struct ShortConvolutionArgs {
    const float* bcx;             // [tokens, 3 size]
    int64_t stride;
    const float* conv;            // [size, W]
    const float* bias;            // [size]
    float* pages;
    const int32_t* page_table;    // (page found, page left) of each row.
    int64_t table_stride;
    const int32_t* query_starts;  // [rows + 1]
    const int32_t* kv_lengths;    // [rows]
    float* y;                     // [tokens, size]
    int64_t rows;
    int64_t size;
    int64_t kernel_size;          // W
    int64_t is_gated;             // Else there is x alone: [tokens, size].
};

// A state of N numbers for each feature. A page holds them [size, N].
struct SelectiveScanArgs {
    const float* x;               // [tokens, size]
    int64_t x_stride;
    const float* dt;              // [tokens, size]
    int64_t dt_stride;
    const float* bc;              // [tokens, 2 N]
    int64_t bc_stride;
    const float* decay;           // [size, N]
    const float* skip;            // [size]
    float* pages;
    const int32_t* page_table;    // (page found, page left) of each row.
    int64_t table_stride;
    const int32_t* query_starts;  // [rows + 1]
    const int32_t* kv_lengths;    // [rows]
    float* y;                     // [tokens, size]
    int64_t rows;
    int64_t size;
    int64_t state_size;           // N, a multiple of 8.
};

// A state space a head after a causal convolution. H heads, G groups, C features. A page holds the
// inputs of the convolution [W - 1, C], then the matrices [H, state_size, head_dim].
struct Mamba2Args {
    const float* xbc;             // [tokens, C]
    int64_t xbc_stride;
    const float* dt;              // [tokens, H]
    int64_t dt_stride;
    const float* conv;            // [C, W]
    const float* conv_bias;       // [C]
    const float* decay;           // [H]
    const float* step_bias;       // [H]
    const float* skip;            // [H]
    float* pages;
    const int32_t* page_table;    // (page found, page left) of each row.
    int64_t table_stride;
    const int32_t* query_starts;  // [rows + 1]
    const int32_t* kv_lengths;    // [rows]
    float* mixed;                 // [tokens, C]
    float* y;                     // [tokens, H, head_dim]
    int64_t rows;
    int64_t num_heads;
    int64_t num_groups;
    int64_t head_dim;
    int64_t state_size;
    int64_t kernel_size;          // W
    double least_step;
    double largest_step;

    int64_t num_features() const { return num_heads * head_dim + 2 * num_groups * state_size; }
    int64_t num_inputs() const { return (kernel_size - 1) * num_features(); }
    int64_t page_size() const { return num_inputs() + num_heads * state_size * head_dim; }
    int64_t num_tokens(int64_t row) const { return query_starts[row + 1] - query_starts[row]; }
    bool is_new(int64_t row) const { return kv_lengths[row] <= num_tokens(row); }
    const float* found(int64_t row) const {
        return pages + page_table[row * table_stride] * page_size();
    }
    float* left(int64_t row) const {
        return pages + page_table[row * table_stride + 1] * page_size();
    }
};

// The op gated_group_norm. x, y [rows, groups * size].
struct GroupNormArgs {
    const float* x;
    int64_t x_stride;
    const float* gate;
    int64_t gate_stride;
    const float* weight;
    float* y;
    int64_t rows;
    int64_t groups;
    int64_t size;
    double eps;
    int64_t is_gated_first;
};

static_assert(sizeof(Mamba2Args) <= kMaxArgs * 8, "kMaxArgs is too small");

void plan_short_convolution(const int64_t* args, PhaseList& list);
void plan_selective_scan(const int64_t* args, PhaseList& list);
void plan_mamba2(const int64_t* args, PhaseList& list);
void plan_gated_group_norm(const int64_t* args, PhaseList& list);
void plan_gate_by_silu(const int64_t* args, PhaseList& list);

}  // namespace headstock
