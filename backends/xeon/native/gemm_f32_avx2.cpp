// Dense float32 weights. A panel is [in_features][16].
#include "gemm.h"
#include "vector_avx2.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

// 6 rows x 16 features: 12 accumulators, 2 weights and 1 activation fill the 16 registers.
struct Float32Micro {
    static constexpr int kRows = 6;

    template <int R>
    static void multiply(const Weight& weight, const char* panel, const LinearArgs& args,
                         const char*, int64_t row, float (*out)[kPanel]) {
        __m256 sum[R][2];
        const float* x[R];
        unrolled<R>([&](auto r) {
            sum[r][0] = sum[r][1] = _mm256_setzero_ps();
            x[r] = args.x + (row + r) * args.x_stride;
        });
        const float* w = reinterpret_cast<const float*>(panel);
        const int64_t size = weight.in_features;
        for (int64_t k = 0; k < size; ++k, w += kPanel) {
            const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
            _mm_prefetch((const char*)(w + 512), _MM_HINT_T0);
            unrolled<R>([&](auto r) {
                const __m256 a = _mm256_broadcast_ss(x[r] + k);
                sum[r][0] = _mm256_fmadd_ps(w0, a, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(w1, a, sum[r][1]);
            });
        }
        unrolled<R>([&](auto r) {
            _mm256_store_ps(out[r], sum[r][0]);
            _mm256_store_ps(out[r] + 8, sum[r][1]);
        });
    }
};

int64_t panel_bytes(int64_t in_features, int64_t) {
    return in_features * kPanel * static_cast<int64_t>(sizeof(float));
}

void pack_row(Weight& weight, const Canonical& from, int64_t i) {
    const int64_t row = from.row_begin + i;
    const auto* source = reinterpret_cast<const float*>(
        static_cast<const char*>(from.weight) + i * from.stride);
    float* target = reinterpret_cast<float*>(weight.panel(row / kPanel)) + row % kPanel;
    for (int64_t k = 0; k < weight.in_features; ++k) target[k * kPanel] = source[k];
}

void read_row(const Weight& weight, int64_t row, float* into) {
    const float* source =
        reinterpret_cast<const float*>(weight.panel(row / kPanel)) + row % kPanel;
    for (int64_t k = 0; k < weight.in_features; ++k) into[k] = source[k * kPanel];
}

}  // namespace

const PanelLayout kFloat32Panels = {panel_bytes, pack_row, read_row};
const WeightKernel kFloat32Avx2 = {"f32-avx2", &kFloat32Panels, nullptr,
                                   multiply<Float32Micro>};

}  // namespace headstock
