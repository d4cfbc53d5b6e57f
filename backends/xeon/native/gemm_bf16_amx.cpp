// Bfloat16 weights on AMX: the AVX2 kernel's panels, which are tiles of 32 input features already;
// activations as two bfloat16 numbers. All batches go through tiles, padded to 16 rows: fewer rows
// wait for memory anyway, and a row's bits must not depend on its neighbours.
#include "gemm.h"
#include "halves.h"
#include "tiles.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

constexpr int64_t kDepth = 32;  // Input features of a tile.

struct Bfloat16Micro {
    static constexpr int kRows = 16;

    template <int R>
    static void multiply(const Weight& weight, const char* panel, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        multiply_rows(weight, panel, args, shared, row, R, out);
    }

    static void multiply_rows(const Weight& weight, const char* panel, const LinearArgs& args,
                              const char* shared, int64_t row, int rows, float (*out)[kPanel]) {
        const Halves x = halves_at(args, shared);
        // Scratch has room for 16 rows from any row on; rows past the last are not kept.
        const uint16_t *high = x.high + row * x.row_size, *low = x.low + row * x.row_size;
        const int64_t stride = x.row_size * 2;
        alignas(64) float results[16][kPanel];
        begin_tiles(kTileBytes);
        zero_tile<kResult>();
        for (int64_t k = 0; k < weight.in_features; k += kDepth, panel += kDepth * kPanel * 2) {
            load_tile<kRight>(panel, kTileBytes);
            load_tile<kLeftLow>(low + k, stride);
            multiply_bf16<kResult, kLeftLow, kRight>();
            load_tile<kLeft>(high + k, stride);
            multiply_bf16<kResult, kLeft, kRight>();
        }
        store_tile<kResult>(results, kTileBytes);
        end_tiles();
        std::memcpy(out, results, static_cast<size_t>(rows) * sizeof(results[0]));
    }
};

}  // namespace

const WeightKernel HS_KERNEL(kBfloat16Amx) = {HS_NAME("bf16-amx"), &kBfloat16Panels, plan_halves,
                                              multiply<Bfloat16Micro>};

}  // namespace headstock
