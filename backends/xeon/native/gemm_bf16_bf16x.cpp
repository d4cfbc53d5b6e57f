// Bfloat16 weights on AVX-512 BF16: the AVX2 kernel's panels; activations as two bfloat16 numbers.
#include "gemm.h"
#include "halves.h"
#include "vector512.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

HS_INLINE int32_t two_of(const uint16_t* x) {
    int32_t two;
    std::memcpy(&two, x, 4);
    return two;
}

struct Bfloat16Micro {
    static constexpr int kRows = 8;

    template <int R>
    static void multiply(const Weight& weight, const char* panel, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        const Halves x = halves_at(args, shared);
        const uint16_t *high = x.high + row * x.row_size, *low = x.low + row * x.row_size;
        Floats sum[R];
        unrolled<R>([&](auto r) { sum[r] = zero_floats(); });
        const int64_t size = weight.in_features;
        for (int64_t k = 0; k < size; k += 2, panel += 64) {
            const Ints w = load_ints(panel);
            if (R <= 2) prefetch(panel + 1024);
            unrolled<R>([&](auto r) {
                const int64_t at = r * x.row_size + k;
                sum[r] = add_products_of_bf16(sum[r], w, all_ints(two_of(low + at)));
                sum[r] = add_products_of_bf16(sum[r], w, all_ints(two_of(high + at)));
            });
        }
        unrolled<R>([&](auto r) { store_floats(out[r], sum[r]); });
    }
};

}  // namespace

const WeightKernel HS_KERNEL(kBfloat16Avx512) = {HS_NAME("bf16-avx512"), &kBfloat16Panels,
                                                 plan_halves, multiply<Bfloat16Micro>};

}  // namespace headstock
