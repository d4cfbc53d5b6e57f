// Where the rows of a step are, for kernels that work token by token.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace headstock {

struct StepRows {
    const int32_t* row_of_token;  // [tokens]
    const int32_t* query_starts;  // [rows + 1]
    const int32_t* kv_lengths;    // [rows]
    const int32_t* counts;        // counts[1]: tokens that are no padding.
    const int32_t* page_table;    // [rows, pages_per_row]
    int64_t pages_per_row;

    bool is_real(int64_t token) const { return token < counts[1]; }

    const int32_t* pages(int64_t token) const {
        return page_table + row_of_token[token] * pages_per_row;
    }

    // Tokens of the row up to this one.
    int64_t seen(int64_t token) const {
        const int64_t row = row_of_token[token];
        return max64(1, kv_lengths[row] - (query_starts[row + 1] - 1 - token));
    }
};

}  // namespace headstock
