#include "halves.h"

namespace headstock {
namespace {

void split_rows(const void* untyped, int64_t chunk, const Worker& worker) {
    const LinearArgs& args = *static_cast<const LinearArgs*>(untyped);
    const Halves to = halves_at(args, worker.shared);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.m), size = args.weight->in_features;
    for (int64_t m = chunk * kRowsPerChunk; m < last; ++m) {
        const float* x = args.x + m * args.x_stride;
        uint16_t *high = to.high + m * to.row_size, *low = to.low + m * to.row_size;
        for (int64_t k = 0; k < size; ++k) {
            high[k] = float_to_bf16(x[k]);
            low[k] = float_to_bf16(x[k] - bf16_to_float(high[k]));
        }
        const auto rest = static_cast<size_t>(to.row_size - size) * sizeof(uint16_t);
        std::memset(high + size, 0, rest);
        std::memset(low + size, 0, rest);
    }
}

}  // namespace

void plan_halves(const LinearArgs& args, PhaseList& list) {
    const int64_t size = round_up(args.weight->in_features, 32);
    const int64_t rows = 2 * round_up(args.m, 16) + 16;  // AMX reads 16, whichever it begins with.
    list.need_shared(static_cast<size_t>(rows * size) * sizeof(uint16_t));
    list.add_rows_to_scratch(split_rows, &args, args.m, kRowsPerChunk);
}

}  // namespace headstock
