// Arguments of the kernels that choose what attention reads: tokens, blocks of tokens, or entries
// that stand for tokens. H heads of the indexer, D features of its keys.
#pragma once

#include "kernels.h"
#include "step_rows.h"

namespace headstock {

// Pages of keys, of one for each `rate` tokens: [pages][keys a page][D].
struct IndexPages {
    char* data;
    int64_t element;    // Element; not in 8 bits.
    int64_t page_size;  // Tokens that a page stands for.
    int64_t rate;
    int64_t head_dim;

    int64_t keys_a_page() const { return max64(1, page_size / rate); }
    int64_t element_bytes() const { return element == 0 ? 4 : 2; }
    char* at(int64_t slot) const { return data + slot * head_dim * element_bytes(); }

    // Where a row's `key`-th key lies: in the page of the last of its tokens.
    int64_t slot(const int32_t* table, int64_t key) const {
        const int64_t last = (key + 1) * rate - 1;
        return table[last / page_size] * keys_a_page() + last % page_size / rate;
    }
};

// Rotates the first features of queries and keys, and stores the keys.
struct IndexPrepareArgs {
    IndexPages pages;
    const float* q;         // [tokens, H, D]
    const float* k;         // [tokens, D]
    int64_t k_stride;
    const float* cos_sin;   // [positions, rotary_size]
    int64_t rotary_size;
    int64_t is_interleaved;
    const int64_t* positions;
    const int64_t* write_slots;
    float* turned;          // Queries. [tokens, H, D]
    int64_t tokens;
    int64_t num_heads;
};

// Chooses the best keys of each token by the sum over heads of weight · relu(q · k). Without
// weights: of each token and head the blocks whose best key's q · k is the highest, and the last
// `num_local` blocks.
struct IndexChooseArgs {
    IndexPages pages;
    StepRows rows;
    const float* q;         // [tokens, H, D]
    const float* weights;   // [tokens, H]; null: blocks are chosen for each head.
    int32_t* chosen;        // [tokens, 1 or H, most]; -1 behind what a token sees.
    int64_t most;
    int64_t block_size;     // Keys of a block; 1 with weights.
    int64_t num_local;
    int64_t tokens;
    int64_t num_heads;
    int64_t max_keys;       // Most that a token sees.
};

static_assert(sizeof(IndexChooseArgs) <= kMaxArgs * 8, "kMaxArgs is too small");

void plan_index_prepare(const int64_t* args, PhaseList& list);
void plan_index_choose(const int64_t* args, PhaseList& list);

}  // namespace headstock
