// Arguments of the kernels that mask and select, and of norms over all heads.
#pragma once

#include "kernels.h"

namespace headstock {

// The op sum_squares.
struct SquaresArgs {
    const float* x;
    int64_t stride;
    float* sums;          // [rows, 2]
    int64_t rows;
    int64_t q_size;
    int64_t k_size;
};

// The op norm_queries_and_keys. y [rows, size], where size - q_size - k_size values are copied.
struct WideNormArgs {
    const float* x;
    int64_t stride;
    const float* squares;  // [rows, 2]
    const float* q_norm;
    const float* k_norm;
    float* y;
    int64_t rows;
    int64_t size;
    int64_t q_size;
    int64_t k_size;
    double q_width;
    double k_width;
    double eps;
};

// The op apply_masks: -inf where a bit is not set. y [rows, size].
struct MaskArgs {
    const float* x;
    int64_t stride;
    const uint32_t* words;
    int64_t words_stride;
    float* y;
    int64_t rows;
    int64_t size;
};

// The op take_draws, of rows of bytes.
struct TakeDrawsArgs {
    const char* x;
    int64_t stride;
    const int32_t* query_starts;  // [rows + 1]
    const int32_t* num_draws;     // [rows]
    char* y;                      // [rows * most_draws, width]
    int64_t rows;
    int64_t most_draws;
    int64_t width;
};

// The op keep_accepted.
struct KeepArgs {
    const int64_t* drawn;     // [rows, num_draws]
    const int32_t* accepted;  // [rows]
    int64_t* kept;            // [rows * num_draws]
    int64_t rows;
    int64_t num_draws;
    int64_t faulty;
};

// The op count_drafts, in place.
struct CountDraftsArgs {
    int32_t* counts;        // [rows * (num_drafts + 1), V]
    int64_t stride;
    const int32_t* drafts;  // [rows, num_drafts]
    int64_t drafts_stride;
    int64_t rows;
    int64_t num_drafts;
};

void plan_squares(const int64_t* args, PhaseList& list);
void plan_wide_norm(const int64_t* args, PhaseList& list);
void plan_mask(const int64_t* args, PhaseList& list);
void plan_take_draws(const int64_t* args, PhaseList& list);
void plan_keep(const int64_t* args, PhaseList& list);
void plan_count_drafts(const int64_t* args, PhaseList& list);

}  // namespace headstock
