// Arguments of the kernels of latent attention. H heads, C features of a latent, E of the rotated
// key, X = C + E, N features of a head's key that are made of the latent, V of its value.
#pragma once

#include "kernels.h"

namespace headstock {

// Pages of one layer: [pages][page_size][X], the latent first.
struct LatentPages {
    char* data;
    int64_t element;  // Element; not kInt8.
    int64_t page_size;
    int64_t latent_size;
    int64_t rotary_size;

    int64_t cached_size() const { return latent_size + rotary_size; }
    int64_t element_bytes() const { return element == 0 ? 4 : 2; }
    char* at(int64_t slot) const { return data + slot * cached_size() * element_bytes(); }
};

// Normalises latents, rotates keys and the last E features of queries, in place, and stores.
struct LatentPrepareArgs {
    LatentPages pages;
    float* q;                 // [tokens, H, N + E]
    int64_t query_size;       // N + E
    const float* kv;          // [tokens, X]
    int64_t kv_stride;
    const float* norm;        // [C]
    double eps;
    const float* cos_sin;     // [positions, E]; null: no rotation.
    int64_t is_interleaved;
    const int64_t* positions;
    const int64_t* write_slots;
    int64_t tokens;
    int64_t num_heads;
};

// Stores as they are.
struct LatentWriteArgs {
    LatentPages pages;
    const float* latents;     // [tokens, C]
    int64_t latent_stride;
    const float* keys;        // [tokens, E]
    int64_t key_stride;
    const int64_t* write_slots;
    int64_t tokens;
};

// Takes queries through the keys' matrices, times the scale of scores: [.., N + E] -> [.., X].
struct LatentAbsorbArgs {
    const float* q;           // [tokens, H, N + E]
    const float* up;          // [H, N + V, C]
    float* y;                 // [tokens, H, X]
    int64_t tokens;
    int64_t num_heads;
    int64_t latent_size;
    int64_t rotary_size;
    int64_t key_size;
    int64_t value_size;
    double scale;
};

// Weighted sums of latents. Heads are worked off in blocks, which the plan takes for kv heads.
struct LatentAttendArgs {
    LatentPages pages;
    AttentionPlan* plan;
    const float* q;           // Absorbed. [tokens, H, X]
    float* y;                 // [tokens, H, C]
    const int32_t* page_table;
    int64_t pages_per_row;
    int64_t tokens;
    int64_t num_heads;
};

// Takes the sums through the values' matrices: [.., C] -> [.., V].
struct LatentExpandArgs {
    const float* sums;        // [tokens, H, C]
    const float* up;          // [H, N + V, C]
    float* y;                 // [tokens, H, V]
    int64_t tokens;
    int64_t num_heads;
    int64_t latent_size;
    int64_t key_size;
    int64_t value_size;
};

void plan_latent_prepare(const int64_t* args, PhaseList& list);
void plan_latent_write(const int64_t* args, PhaseList& list);
void plan_latent_absorb(const int64_t* args, PhaseList& list);
void plan_latent_attend(const int64_t* args, PhaseList& list);
void plan_latent_expand(const int64_t* args, PhaseList& list);

}  // namespace headstock
