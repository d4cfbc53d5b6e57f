// Arguments of the kernels on streams of hidden states, features of which the highest count, and
// experts that are identities. Rows are tokens; streams of a token lie side by side.
#pragma once

#include "program.h"

namespace headstock {

// y = each stream + the sum of all of them, weighed by the row's coefficients.
struct PredictArgs {
    const float* x;
    int64_t x_stride;
    const float* coefs;    // [rows, streams, streams]
    int64_t coefs_stride;
    float* y;              // [rows, streams, size]
    int64_t rows;
    int64_t streams;
    int64_t size;
};

// y = streams + other, but for the first; with `coefs`, + (other - the first) (1 + coefficient).
struct AddStreamsArgs {
    const float* x;
    int64_t x_stride;
    const float* other;    // [rows, size]
    int64_t other_stride;
    const float* coefs;    // [rows, streams]; null: as said.
    int64_t coefs_stride;
    float* y;
    int64_t rows;
    int64_t streams;
    int64_t size;
};

// y = streams, of the root mean square that `like` has.
struct MatchArgs {
    const float* x;
    int64_t x_stride;
    const float* like;     // [rows, size]
    int64_t like_stride;
    float* y;
    int64_t rows;
    int64_t streams;
    int64_t size;
    double least_square;
};

// y = the mean of the streams. [rows, size]
struct MeanArgs {
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t rows;
    int64_t streams;
    int64_t size;
};

// sums = of features, and of their squares. [rows, 2]
struct MomentsArgs {
    const float* x;
    int64_t x_stride;
    float* sums;
    int64_t rows;
    int64_t size;
};

// y = how far features are above mean + deviations times their deviation, or 0. [rows, size]
struct KeepAboveArgs {
    const float* x;
    int64_t x_stride;
    const float* sums;     // [rows, 2], over `width` features.
    float* y;
    int64_t rows;
    int64_t size;
    int64_t width;
    double deviations;
};

// y = numbers, `fill` where they are `limit` or more.
struct ReplaceArgs {
    const void* x;
    void* y;
    int64_t count;
    int64_t bytes;         // 4 or 8: of a number.
    int64_t limit;
    int64_t fill;
};

// y = x, or a row of the table for ids from `first` on that it has rows for. [rows, size]
struct PutRowsArgs {
    const float* x;
    int64_t x_stride;
    const int64_t* ids;
    const float* table;    // [count, size]
    float* y;
    int64_t rows;
    int64_t size;
    int64_t first;
    int64_t count;
};

// y = routed + x times the weights of the row's experts from num_experts on.
struct IdentitiesArgs {
    const float* routed;
    int64_t routed_stride;
    const float* x;
    int64_t x_stride;
    const float* weights;    // [rows, chosen]
    const int32_t* experts;  // [rows, chosen]
    float* y;                // [rows, size]
    int64_t rows;
    int64_t size;
    int64_t chosen;
    int64_t num_experts;
};

void plan_predict(const int64_t* args, PhaseList& list);
void plan_add_streams(const int64_t* args, PhaseList& list);
void plan_match(const int64_t* args, PhaseList& list);
void plan_mean(const int64_t* args, PhaseList& list);
void plan_moments(const int64_t* args, PhaseList& list);
void plan_keep_above(const int64_t* args, PhaseList& list);
void plan_replace(const int64_t* args, PhaseList& list);
void plan_put_rows(const int64_t* args, PhaseList& list);
void plan_identities(const int64_t* args, PhaseList& list);

}  // namespace headstock
