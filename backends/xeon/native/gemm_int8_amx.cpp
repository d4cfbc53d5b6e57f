// Int8 weights on AMX, with the 16-bit activations of the other int8 kernels as two bytes: 256 * h
// + l with h signed and l unsigned. Two tile products a group give the same integers, so the bits
// are the AVX2 kernel's, for any batch.
//
// A panel is a sequence of blocks, one a group of 32: 16 float16 scales, then a tile of 8 rows,
// [4 input features a row][16 output features][4].
#include "gemm.h"
#include "quantise.h"
#include "tiles.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

constexpr int64_t kGroup = 32;
constexpr int64_t kHeader = 64;  // Scales in the first half: tiles begin at cache lines.
constexpr int64_t kBlock = kHeader + kGroup * kPanel;

// The activations of one group, as tiles want them.
struct Bytes {
    alignas(64) uint8_t low[16][kGroup];
    alignas(64) int8_t high[16][kGroup];
};

void split(const int16_t* q, int64_t row_size, int64_t rows, Bytes& to) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < kGroup; ++k) {
            const int16_t value = q[r * row_size + k];
            to.low[r][k] = static_cast<uint8_t>(value & 255);
            to.high[r][k] = static_cast<int8_t>(value >> 8);
        }
}

struct Int8Micro {
    static constexpr int kRows = 16;

    template <int R>
    static void multiply(const Weight&, const char* block, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        multiply_rows(block, args, shared, row, R, out);
    }

    static void multiply_rows(const char* block, const LinearArgs& args, const char* shared,
                              int64_t row, int rows, float (*out)[kPanel]) {
        const auto x = quantised16_at(args, shared);
        const int16_t* q = x.values + row * x.row_size;
        const float* scale = x.scales + row * x.num_groups;
        alignas(64) int32_t high[16][kPanel], low[16][kPanel];
        Bytes bytes{};
        for (int r = 0; r < rows; ++r) store_floats(out[r], zero_floats());
        begin_tiles(kGroup);
        for (int64_t g = 0; g < x.num_groups; ++g, block += kBlock, q += kGroup) {
            split(q, x.row_size, rows, bytes);
            load_tile<kRight>(block + kHeader, 64);
            load_tile<kLeft>(bytes.high, kGroup);
            load_tile<kLeftLow>(bytes.low, kGroup);
            zero_tile<kResult>();
            zero_tile<kResultLow>();
            multiply_int8<kResult, kLeft, kRight>();
            multiply_uint8<kResultLow, kLeftLow, kRight>();
            store_tile<kResult>(high, 64);
            store_tile<kResultLow>(low, 64);
            const Floats s = load_halves(block);
            for (int r = 0; r < rows; ++r) {
                const Floats both = times(s, all_floats(scale[r * x.num_groups + g]));
                const Floats dot = to_floats(add_shifted(load_ints(high[r]), load_ints(low[r])));
                store_floats(out[r], times_plus(dot, both, load_floats(out[r])));
            }
        }
        end_tiles();
    }
};

int64_t panel_bytes(int64_t in_features, int64_t) { return in_features / kGroup * kBlock; }

char* byte_of(char* block, int64_t lane, int64_t k) {
    return block + kHeader + k / 4 * 64 + lane * 4 + k % 4;
}

void pack_row(Weight& weight, const Canonical& from, int64_t i) {
    const int64_t row = from.row_begin + i, lane = row % kPanel;
    const auto* source = static_cast<const int8_t*>(from.weight) + i * from.stride;
    const float* scale = from.scale + i * (weight.in_features / from.group);
    const float factor = half_factor(largest_scale(weight, from, i));
    weight.row_factor[row] = factor;
    char* block = weight.panel(row / kPanel);
    for (int64_t g = 0; g < weight.num_groups(); ++g, block += kBlock, source += kGroup) {
        const uint16_t half = float_to_half(scale[g * kGroup / from.group] / factor);
        std::memcpy(block + 2 * lane, &half, 2);
        for (int64_t k = 0; k < kGroup; ++k) *byte_of(block, lane, k) = static_cast<char>(source[k]);
    }
}

void read_row(const Weight& weight, int64_t row, float* into) {
    const int64_t lane = row % kPanel;
    char* block = weight.panel(row / kPanel);
    for (int64_t g = 0; g < weight.num_groups(); ++g, block += kBlock, into += kGroup) {
        uint16_t half;
        std::memcpy(&half, block + 2 * lane, 2);
        const float scale = half_to_float(half) * weight.row_factor[row];
        for (int64_t k = 0; k < kGroup; ++k)
            into[k] = scale * static_cast<float>(static_cast<int8_t>(*byte_of(block, lane, k)));
    }
}

const PanelLayout kPanels = {panel_bytes, pack_row, read_row};

}  // namespace

const WeightKernel HS_KERNEL(kInt8Amx) = {HS_NAME("int8-amx"), &kPanels, plan_quantise16,
                                          multiply<Int8Micro>};

}  // namespace headstock
