// Arguments of attention to tokens, or to blocks of tokens, that were chosen for each query.
#pragma once

#include "latent.h"
#include "step_rows.h"

namespace headstock {

// Weighted sums of the latents of chosen tokens.
struct AttendLatentsArgs {
    LatentPages pages;
    StepRows rows;
    const float* q;         // Absorbed. [tokens, H, X]
    float* y;               // [tokens, H, C]
    const int32_t* chosen;  // Tokens of the row; below 0: none. [tokens, most]
    int64_t most;
    int64_t tokens;
    int64_t num_heads;
};

struct AttendBlocksArgs {
    Pages pages;            // Not in 8 bits.
    StepRows rows;
    const float* q;         // [tokens, H, D]
    int64_t q_stride;
    float* y;               // [tokens, H, D]
    const int32_t* chosen;  // Blocks of the row; below 0: none. [tokens, kv heads, most]
    int64_t most;
    int64_t block_size;     // Tokens.
    int64_t tokens;
    int64_t num_heads;
    double scale;
};

static_assert(sizeof(AttendBlocksArgs) <= kMaxArgs * 8, "kMaxArgs is too small");

void plan_attend_latents(const int64_t* args, PhaseList& list);
void plan_attend_blocks(const int64_t* args, PhaseList& list);

}  // namespace headstock
