// Arguments of the kernels around entries, each of which stands for a stretch of tokens. D features
// of an entry, H heads, m tokens of an entry (the rate).
#pragma once

#include "indexer.h"

namespace headstock {

// The op compress_tokens. F is D, or 2 D where the m tokens before count, too.
struct CompressArgs {
    const float* waiting;     // Keys and gates of the step's tokens. [tokens, 2 F]
    int64_t waiting_stride;
    char* pages;              // Of keys and gates. [pages][page_size][2 F]
    int64_t element;          // Of these pages.
    int64_t width;            // F
    const int64_t* slots;     // Where keys and gates are written. [tokens]
    const int32_t* table;     // Of these pages.
    int64_t pages_per_row;
    const float* bias;        // Of gates. [m, F]
    const float* norm;        // [D]
    double eps;
    const float* cos_sin;     // [positions, E]
    int64_t rotary_size;      // E
    IndexPages entries;
    const int64_t* entry_slots;  // Of the step's tokens, in tokens of the entries' pages.
    const int32_t* row_of_token;
    const int32_t* counts;    // counts[1]: tokens that are no padding.
    const int64_t* positions;
    int64_t tokens;
};

// The op compressed_attention. Pages of tokens are [pages][page_size][D]; entries have pages of
// their own, which stand for as many tokens.
struct AttendEntriesArgs {
    char* data;
    int64_t element;
    int64_t page_size;
    int64_t head_dim;
    StepRows rows;
    char* entries;
    int64_t entry_element;
    int64_t rate;
    const int32_t* entry_table;
    int64_t entry_pages_per_row;
    const float* q;           // [tokens, H, D]
    const float* sinks;       // [H]
    float* y;                 // [tokens, H, D]
    const int32_t* chosen;    // Entries of the row; below 0: none. [tokens, most]; null: all.
    int64_t most;             // Entries that a token reads at most.
    int64_t window;
    int64_t tokens;
    int64_t num_heads;
    double scale;
};

// The op rotate_last.
struct RotateLastArgs {
    const float* x;           // [tokens, H, D]
    const int64_t* positions;
    const float* cos_sin;     // [positions, E]
    int64_t rotary_size;
    int64_t is_inverse;
    float* y;                 // [tokens, H, D]
    int64_t tokens;
    int64_t num_heads;
    int64_t head_dim;
};

static_assert(sizeof(CompressArgs) <= kMaxArgs * 8, "kMaxArgs is too small");
static_assert(sizeof(AttendEntriesArgs) <= kMaxArgs * 8, "kMaxArgs is too small");

void plan_compress(const int64_t* args, PhaseList& list);
void plan_attend_entries(const int64_t* args, PhaseList& list);
void plan_rotate_last(const int64_t* args, PhaseList& list);

}  // namespace headstock
