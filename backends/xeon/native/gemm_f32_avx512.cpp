// Dense float32 weights on AVX-512: the AVX2 kernel's panels, and its bits.
#include "gemm.h"
#include "vector512.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

struct Float32Micro {
    static constexpr int kRows = 12;

    template <int R>
    static void multiply(const Weight& weight, const char* panel, const LinearArgs& args,
                         const char*, int64_t row, float (*out)[kPanel]) {
        Floats sum[R];
        unrolled<R>([&](auto r) { sum[r] = zero_floats(); });
        const float* w = reinterpret_cast<const float*>(panel);
        const float* x = args.x + row * args.x_stride;
        const int64_t size = weight.in_features, stride = args.x_stride;
        for (int64_t k = 0; k < size; ++k, w += kPanel) {
            const Floats wk = load_floats(w);
            if (R <= 2) prefetch(w + 256);
            unrolled<R>([&](auto r) {
                sum[r] = times_plus(wk, all_floats(x[r * stride + k]), sum[r]);
            });
        }
        unrolled<R>([&](auto r) { store_floats(out[r], sum[r]); });
    }
};

}  // namespace

const WeightKernel HS_KERNEL(kFloat32Avx512) = {HS_NAME("f32-avx512"), &kFloat32Panels, nullptr,
                                                multiply<Float32Micro>};

}  // namespace headstock
