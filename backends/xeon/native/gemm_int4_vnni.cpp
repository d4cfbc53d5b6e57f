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

    template <int R>
    static void multiply(const Weight&, const char* block, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        const auto x = quantised_at<int8_t>(args, shared);
        const int8_t* q = x.values + row * x.row_size;
        const float* scale = x.scales + row * x.num_groups;
        const float* total = x.sums + row * x.num_groups;
        Floats sum[R];
        unrolled<R>([&](auto r) { sum[r] = zero_floats(); });
        for (int64_t g = 0; g < x.num_groups; ++g, block += kBlock, q += kGroup) {
            Ints dot[R];
            unrolled<R>([&](auto r) { dot[r] = zero_ints(); });
            for (int j = 0; j < 4; ++j) {
                const Ints both = load_ints(block + kHeader + j * 64);
                prefetch(block + 1536 + j * 80);
                const Ints low = low_nibbles(both), high = high_nibbles(both);
                unrolled<R>([&](auto r) {
                    const int8_t* four = q + r * x.row_size + 4 * j;
                    dot[r] = add_products_of_4(dot[r], low, all_ints(four_of(four)));
                    dot[r] = add_products_of_4(dot[r], high, all_ints(four_of(four + 16)));
                });
            }
            const Floats s = load_halves(block), minimum = load_halves(block + 2 * kPanel);
            unrolled<R>([&](auto r) {
                const int64_t at = r * x.num_groups + g;
                sum[r] = times_plus(to_floats(dot[r]), times(s, all_floats(scale[at])), sum[r]);
                sum[r] = times_plus(minimum, all_floats(total[at]), sum[r]);
            });
        }
        unrolled<R>([&](auto r) { store_floats(out[r], sum[r]); });
    }
};

}  // namespace

const WeightKernel HS_KERNEL(kInt4Vnni) = {HS_NAME("int4-vnni"), &kInt4Panels, plan_quantise8,
                                           multiply<Int4Micro>};

}  // namespace headstock
