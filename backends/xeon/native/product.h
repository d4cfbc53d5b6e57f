// How products are cut into chunks, by their sizes alone.
#pragma once

#include "weight.h"

namespace headstock {

struct Grid {
    int64_t panels_per_chunk;
    int64_t num_panel_chunks;
    int64_t rows_per_block;  // So that their activations stay in L2.
};

// Of a product of about `rows` rows with `num_panels` panels of `weight`.
Grid grid_of(const Weight& weight, int64_t num_panels, int64_t rows);

}  // namespace headstock
