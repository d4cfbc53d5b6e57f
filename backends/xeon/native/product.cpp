// Matrix products of one weight.
#include "product.h"

#include "kernels.h"
#include "numbers.h"

namespace headstock {
namespace {

constexpr int64_t kChunkBytes = 64 << 10;        // Of weights, for few rows: some microseconds.
constexpr int64_t kActivationBytes = 256 << 10;  // Of activations, so that they stay in L2.
constexpr int64_t kMinChunks = 16;

int64_t num_row_blocks(const Grid& grid, int64_t rows) {
    return (rows + grid.rows_per_block - 1) / grid.rows_per_block;
}

void run_linear(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const LinearArgs*>(untyped);
    const Weight& weight = *args.weight;
    const Grid grid = grid_of(weight, weight.num_panels, args.m);
    const int64_t row_blocks = num_row_blocks(grid, args.m);
    const int64_t panel = chunk / row_blocks * grid.panels_per_chunk;
    const int64_t row = chunk % row_blocks * grid.rows_per_block;
    const Block block = {panel, min64(panel + grid.panels_per_chunk, weight.num_panels), row,
                         min64(row + grid.rows_per_block, args.m)};
    weight.kernel->multiply(args, block, worker.shared);
}

}  // namespace

Grid grid_of(const Weight& weight, int64_t num_panels, int64_t rows) {
    Grid grid;
    const int64_t fitting = round_up(kActivationBytes / (weight.in_features * 4 + 1), 12);
    grid.rows_per_block = max64(24, min64(240, fitting));
    const int64_t bytes = kChunkBytes / max64(1, rows / 16);
    grid.panels_per_chunk =
        max64(1, min64(bytes / weight.panel_bytes, num_panels / kMinChunks));
    grid.num_panel_chunks = (num_panels + grid.panels_per_chunk - 1) / grid.panels_per_chunk;
    return grid;
}

void plan_linear(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<LinearArgs>(untyped);
    const Weight& weight = *args.weight;
    if (weight.kernel->prepare) weight.kernel->prepare(args, list);
    const Grid grid = grid_of(weight, weight.num_panels, args.m);
    list.add(run_linear, &args, grid.num_panel_chunks * num_row_blocks(grid, args.m));
}

}  // namespace headstock
