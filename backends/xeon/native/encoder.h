// Arguments of the kernels that encoders have: norms with a shift, embeddings, pooling.
#pragma once

#include "kernels.h"

namespace headstock {

// x [rows, size] -> y, less its mean, divided by its deviation, scaled and shifted. With `residual`,
// residual += x first and the sum is normalised.
struct LayerNormArgs {
    const float* x;
    int64_t x_stride;
    float* residual;     // Null: none.
    int64_t residual_stride;
    const float* weight;
    const float* bias;   // Null: none.
    float* y;            // [rows, size]
    int64_t rows;
    int64_t size;
    double eps;
};

// y = activation(x).
struct ActivateArgs {
    const float* x;
    int64_t stride;
    float* y;            // [rows, size]
    int64_t rows;
    int64_t size;
    Activation activation;
};

// What ids, places and types of tokens stand for, added up.
struct EmbedArgs {
    const int64_t* ids;        // Id plus type times num_words. [rows]
    const int64_t* positions;  // [rows]
    const float* words;
    const float* places;
    const float* types;
    float* y;                  // [rows, size]
    int64_t rows;
    int64_t size;
    int64_t num_words;
    int64_t first_place;
};

enum class PoolKind : int64_t { kLast = 0, kMean = 1, kFirst = 2 };

// Hidden states of rows to a vector each.
struct PoolArgs {
    const float* hidden;
    int64_t stride;
    const int32_t* query_starts;
    const int64_t* picked;     // Rows of the step; null: all, one after another. [rows]
    float* y;                  // [rows, size]
    int64_t rows;
    int64_t size;
    int64_t kind;
    int64_t is_normalized;
    int64_t is_cut;            // Whether `hidden` has the rows' last tokens alone.
};

void plan_layer_norm(const int64_t* args, PhaseList& list);
void plan_activate(const int64_t* args, PhaseList& list);
void plan_embed(const int64_t* args, PhaseList& list);
void plan_pool(const int64_t* args, PhaseList& list);

}  // namespace headstock
