// Int8 weights on AVX-512 VNNI: the AVX2 kernel's panels and its bits. vpdpwssd multiplies pairs of
// 16-bit integers and adds them to the sum, where AVX2 needs two instructions for half as many.
#include "gemm.h"
#include "quantise.h"
#include "vector512.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

constexpr int64_t block_bytes(int64_t group) { return 2 * kPanel + group * kPanel; }

HS_INLINE int32_t two_of(const int16_t* q) {
    int32_t two;
    std::memcpy(&two, q, 4);
    return two;
}

template <int GROUP>
struct Int8Micro {
    static constexpr int kRows = 8;

    template <int R>
    static void multiply(const Weight&, const char* block, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        const auto x = quantised16_at(args, shared);
        const int16_t* q = x.values + row * x.row_size;
        const float* scale = x.scales + row * x.num_groups;
        Floats sum[R];
        unrolled<R>([&](auto r) { sum[r] = zero_floats(); });
        for (int64_t g = 0; g < x.num_groups; ++g, block += block_bytes(GROUP), q += GROUP) {
            Ints dot[R];
            unrolled<R>([&](auto r) { dot[r] = zero_ints(); });
            for (int j = 0; j < GROUP / 2; ++j) {
                const char* pairs = block + 2 * kPanel + j * 2 * kPanel;
                const Ints w = load_widened(pairs);
                prefetch(pairs + 1536);
                unrolled<R>([&](auto r) {
                    const Ints a = all_ints(two_of(q + r * x.row_size + 2 * j));
                    dot[r] = add_products_of_2(dot[r], w, a);
                });
            }
            const Floats s = load_halves(block);
            unrolled<R>([&](auto r) {
                const Floats both = times(s, all_floats(scale[r * x.num_groups + g]));
                sum[r] = times_plus(to_floats(dot[r]), both, sum[r]);
            });
        }
        unrolled<R>([&](auto r) { store_floats(out[r], sum[r]); });
    }
};

}  // namespace

const WeightKernel HS_KERNEL(kInt8Vnni) = {HS_NAME("int8-vnni"), &kInt8Panels, plan_quantise16,
                                           multiply<Int8Micro<32>>};
const WeightKernel HS_KERNEL(kInt8Group16Vnni) = {HS_NAME("int8-g16-vnni"), &kInt8Panels, plan_quantise16,
                                                  multiply<Int8Micro<16>>};

}  // namespace headstock
