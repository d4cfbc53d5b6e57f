// How a step's attention is cut into work, and what the parts leave for each other.
//
// Keys are worked off in splits at fixed absolute positions: the softmax of a split is one pass,
// and the states of the splits are merged in order. Whether one item does all splits of a row or
// each is done by somebody else, alone or for all rows that share a prefix, the arithmetic of an
// output element is the same, so its bits are too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "numbers.h"

namespace headstock {

constexpr int64_t kSplit = 128;       // Tokens; page sizes divide it.
constexpr int64_t kTileRows = 32;     // Query rows (token, head) of an item, about.
constexpr int64_t kSmallQuery = 8;    // Rows with so many tokens may leave partial states.

// Some query tokens against some splits, for one key/value head and the query heads it serves.
struct AttentionItem {
    int32_t token_begin, token_count;
    int32_t kv_head;
    int32_t row;                      // Whose page table is read.
    int32_t split_begin, split_end;
    int32_t is_partial;               // Leaves one state a split; else the item finishes.
};

// First token that the token before place `end` sees: of its window; of its chunk of -window tokens;
// with 0 the row's first.
static inline int64_t first_in_window(int64_t end, int64_t window) {
    if (window >= 0) return window > 0 ? max64(0, end - window) : 0;
    return (end - 1) / -window * -window;
}

struct AttentionPlan {
    AttentionPlan(int64_t max_tokens, int64_t max_rows, int64_t num_heads, int64_t num_kv_heads,
                  int64_t head_dim, int64_t max_length, int64_t window, bool is_causal,
                  int num_threads);
    ~AttentionPlan();
    AttentionPlan(const AttentionPlan&) = delete;
    AttentionPlan& operator=(const AttentionPlan&) = delete;

    int64_t num_heads, num_kv_heads, head_dim, window;
    bool is_causal;                   // Else a token sees those behind it too, within the window.
    int num_threads;
    int64_t tile_tokens;              // Query tokens of an item at most.

    std::vector<AttentionItem> items;
    std::vector<int32_t> limit;       // Keys up to the last that a token sees. [tokens]
    std::vector<int32_t> first;       // The first that it sees: of its window. [tokens]
    std::vector<int32_t> num_states;  // Partial states it has; 0: none. [tokens]
    std::vector<int32_t> first_state; // Where they begin, one a split. [tokens]
    std::vector<int32_t> states_from; // Split of the first. [tokens]

    float* partial_o;                 // Unnormalised. [states, H, D]
    float* partial_ml;                // Largest score and sum of exponentials. [states, H, 2]
    int64_t max_states;
    size_t o_bytes, ml_bytes;
    int64_t num_taken = 0;

    // Per row, while planning.
    std::vector<int32_t> row_begin, row_end;    // Tokens.
    std::vector<int32_t> next_split, end_split; // Splits that no thread has taken yet.
    std::vector<char> is_partial;
};

}  // namespace headstock
