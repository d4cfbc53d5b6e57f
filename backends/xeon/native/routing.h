// Arguments of the kernels around experts, beside those of experts themselves.
#pragma once

#include "kernels.h"

namespace headstock {

enum class ScoreKind : int64_t { kSoftmax = 0, kSigmoid = 1, kSqrtSoftplus = 2 };

// The op route_experts and, with a table, route_by_token. [rows, size] -> [rows, k]
struct RouteExpertsArgs {
    const float* logits;
    int64_t stride;
    const float* bias;     // [size]; null: none.
    float* weights;
    int32_t* experts;
    int64_t rows;
    int64_t size;
    int64_t k;
    int64_t scores;        // ScoreKind
    int64_t is_normalized;
    int64_t num_groups;
    int64_t groups_kept;
    int64_t group_best;    // 1 or 2.
    double factor;
    const int64_t* ids;    // Of the rows' tokens; null: experts are chosen by scores.
    const int32_t* table;  // Experts of each id. [ids, k]
};

// The op add_shared: y += sigmoid(gate) x.
struct AddSharedArgs {
    float* y;
    int64_t y_stride;
    const float* x;
    int64_t x_stride;
    const float* gate;     // A number a row; null: 1.
    int64_t gate_stride;
    int64_t rows;
    int64_t size;
};

// The op weigh_experts: y = weights · scales[experts], 0 where there is no expert.
struct WeighExpertsArgs {
    const float* weights;    // [rows, k]
    const int32_t* experts;  // [rows, k]
    const float* scales;     // [experts]
    float* y;                // [rows, k]
    int64_t rows;
    int64_t k;
};

void plan_weigh_experts(const int64_t* args, PhaseList& list);
void plan_route_experts(const int64_t* args, PhaseList& list);
void plan_add_shared(const int64_t* args, PhaseList& list);

}  // namespace headstock
