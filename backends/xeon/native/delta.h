// Arguments of the kernels of linear attention and of the gates on attention's output.
#pragma once

#include "kernels.h"

namespace headstock {

// The gated delta rule after a causal convolution. K key heads, V value heads, C features. A page
// holds the inputs of the convolution [W - 1, C], then the matrices [V, key_size, value_size].
struct DeltaArgs {
    const float* qkv;             // [tokens, C]
    int64_t qkv_stride;
    const float* b;               // [tokens, V]
    int64_t b_stride;
    const float* a;               // [tokens, V], or [tokens, V, key_size] by channel
    int64_t a_stride;
    const float* conv;            // [C, W]
    const float* decay;           // [V]
    const float* bias;            // [V], or [V, key_size] by channel
    float* pages;
    const int32_t* page_table;    // (page found, page left) of each row.
    int64_t table_stride;
    const int32_t* query_starts;  // [rows + 1]
    const int32_t* kv_lengths;    // [rows]
    float* mixed;                 // [tokens, C]
    float* y;                     // [tokens, V, value_size]
    int64_t rows;
    int64_t num_key_heads;
    int64_t num_value_heads;
    int64_t key_size;
    int64_t value_size;
    int64_t kernel_size;          // W
    int64_t by_channel;           // Whether each row of a matrix decays at a rate of its own.

    int64_t num_features() const {
        return 2 * num_key_heads * key_size + num_value_heads * value_size;
    }
    int64_t num_inputs() const { return (kernel_size - 1) * num_features(); }
    int64_t page_size() const {
        return num_inputs() + num_value_heads * key_size * value_size;
    }
    int64_t num_tokens(int64_t row) const { return query_starts[row + 1] - query_starts[row]; }
    bool is_new(int64_t row) const { return kv_lengths[row] <= num_tokens(row); }
    const float* found(int64_t row) const {
        return pages + page_table[row * table_stride] * page_size();
    }
    float* left(int64_t row) const {
        return pages + page_table[row * table_stride + 1] * page_size();
    }
};

// The op gated_norm. x, y [rows, size]; row r's gate is head r % heads of token r / heads.
struct GatedNormArgs {
    const float* x;
    const float* gate;
    int64_t gate_stride;  // From token to token; heads lie together.
    const float* weight;
    float* y;
    int64_t rows;
    int64_t heads;
    int64_t size;
    double eps;
};

// The op gate_heads: as gate_features, with a gate for each head.
struct GateHeadsArgs {
    const float* x;
    int64_t x_stride;
    const float* gate;    // [rows, heads]
    int64_t gate_stride;
    float* y;             // [rows, size]
    int64_t rows;
    int64_t size;
    int64_t heads;
    int64_t is_softplus;  // Else sigmoid.
};

// The op gate_features.
struct GateArgs {
    const float* x;
    int64_t x_stride;
    const float* gate;
    int64_t gate_stride;
    float* y;             // [rows, size]
    int64_t rows;
    int64_t size;
};

static_assert(sizeof(DeltaArgs) <= kMaxArgs * 8, "kMaxArgs is too small");

void plan_delta(const int64_t* args, PhaseList& list);
void plan_gated_norm(const int64_t* args, PhaseList& list);
void plan_gate(const int64_t* args, PhaseList& list);
void plan_gate_heads(const int64_t* args, PhaseList& list);

}  // namespace headstock
