// Arguments of the kernels of hyper-connections, and of products of groups. N streams of D
// features lie side by side.
#pragma once

#include "kernels.h"

namespace headstock {

// The ops collapse_streams and, without `write`, merge_streams.
struct CollapseArgs {
    const float* x;      // [rows, N D]
    int64_t x_stride;
    const float* mix;    // [N, N D], then as many and N N of what is written and mixed by.
    const float* base;   // A number for each row of `mix`.
    const float* scale;  // Of what is read, written and mixed by.
    float* y;            // [rows, D]
    float* write;        // [rows, N]; null: streams are read only.
    float* mixed;        // [rows, N N]
    int64_t rows;
    int64_t streams;
    int64_t size;        // D
    double norm_eps;
    double eps;
    int64_t num_rounds;
};

// The op expand_streams.
struct ExpandArgs {
    const float* x;      // [rows, N D]
    int64_t x_stride;
    const float* other;  // [rows, D]
    int64_t other_stride;
    const float* write;  // [rows, N]
    const float* mixed;  // [rows, N N]
    float* y;            // [rows, N D]
    int64_t rows;
    int64_t streams;
    int64_t size;
};

// The op multiply_groups.
struct GroupsArgs {
    const float* x;       // [rows, groups * in_features]
    int64_t x_stride;
    const float* weight;  // [groups, out_features, in_features]
    float* y;             // [rows, groups * out_features]
    int64_t rows;
    int64_t groups;
    int64_t in_features;
    int64_t out_features;
};

void plan_collapse(const int64_t* args, PhaseList& list);
void plan_expand(const int64_t* args, PhaseList& list);
void plan_groups(const int64_t* args, PhaseList& list);

}  // namespace headstock
