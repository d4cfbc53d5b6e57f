// Int4 weights on AVX-512 VNNI: the AVX2 kernel's panels and its bits. vpdpbusd multiplies four
// nibbles by four 8-bit activations and adds them to the sum.
#include "gemm.h"
#include "quantise.h"
#include "vector512.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

constexpr int64_t kGroup = 32;
constexpr int64_t kHeader = 4 * kPanel;
constexpr int64_t kBlock = kHeader + kGroup / 2 * kPanel;

HS_INLINE int32_t four_of(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, 4);
    return four;
}

struct Int4Micro {
    static constexpr int kRows = 8;

    // Adds the products of one group with the rows at `x`, `row_size` and `num_groups` apart.
    template <int R>
    HS_INLINE void add_group(const char* block, const Rounded8& x, int64_t row_size,
                             int64_t num_groups, Floats* sum) {
        Ints dot[R];
        unrolled<R>([&](auto r) { dot[r] = zero_ints(); });
        for (int j = 0; j < 4; ++j) {
            const Ints both = load_ints(block + kHeader + j * 64);
            prefetch(block + 1536 + j * 80);
            const Ints low = low_nibbles(both), high = high_nibbles(both);
            unrolled<R>([&](auto r) {
                const int8_t* four = x.values + r * row_size + 4 * j;
                dot[r] = add_products_of_4(dot[r], low, all_ints(four_of(four)));
                dot[r] = add_products_of_4(dot[r], high, all_ints(four_of(four + 16)));
            });
        }
        const Floats s = load_halves(block), minimum = load_halves(block + 2 * kPanel);
        unrolled<R>([&](auto r) {
            const int64_t at = r * num_groups;
            sum[r] = times_plus(to_floats(dot[r]), times(s, all_floats(x.scales[at])), sum[r]);
            sum[r] = times_plus(minimum, all_floats(x.sums[at]), sum[r]);
        });
    }

    // Adds a row's rests, each row by itself: neighbours seldom have theirs in the same groups.
    static void add_rests(const Quantised8& x, const char* panel, int64_t row, float* out) {
        Floats sum[1] = {load_floats(out)};
        for_each_rest(x, row, [&](int64_t g, const Rounded8& rest) __attribute__((always_inline)) {
            add_group<1>(panel + g * kBlock, rest, 0, 0, sum);
        });
        store_floats(out, sum[0]);
    }

    template <int R>
    static void multiply(const Weight&, const char* panel, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        const Quantised8 x = quantised8_at(args, shared);
        const Rounded8 rows = from_row(x, x.whole, row);
        Floats sum[R];
        unrolled<R>([&](auto r) { sum[r] = zero_floats(); });
        for (int64_t g = 0; g < x.num_groups; ++g)
            add_group<R>(panel + g * kBlock, from_group(rows, g), x.row_size, x.num_groups, sum);
        unrolled<R>([&](auto r) { store_floats(out[r], sum[r]); });
        for (int r = 0; r < R; ++r) add_rests(x, panel, row + r, out[r]);
    }
};

}  // namespace

const WeightKernel HS_KERNEL(kInt4Vnni) = {HS_NAME("int4-vnni"), &kInt4Panels, plan_quantise8,
                                           multiply<Int4Micro>};

}  // namespace headstock
