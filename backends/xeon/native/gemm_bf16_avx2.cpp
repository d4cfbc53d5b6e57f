// Dense bfloat16 weights, float32 activations. A panel is [in_features / 2][16][2]: pairs of
// neighbouring input features, as the bfloat16 dot products of newer processors want them. Here
// the even ones become float32 by a shift and the odd ones by a mask.
#include "gemm.h"
#include "vector_avx2.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

inline __m256 even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }

inline __m256 odd_of(__m256i pairs) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, high));
}

struct Bfloat16Micro {
    static constexpr int kRows = 4;

    template <int R>
    static void multiply(const Weight& weight, const char* panel, const LinearArgs& args,
                         const char*, int64_t row, float (*out)[kPanel]) {
        __m256 sum[R][2];
        const float* x[R];
        unrolled<R>([&](auto r) {
            sum[r][0] = sum[r][1] = _mm256_setzero_ps();
            x[r] = args.x + (row + r) * args.x_stride;
        });
        const int64_t size = weight.in_features;
        for (int64_t k = 0; k < size; k += 2, panel += 64) {
            const __m256i p0 = _mm256_loadu_si256((const __m256i*)panel);
            const __m256i p1 = _mm256_loadu_si256((const __m256i*)(panel + 32));
            if (R <= 2) _mm_prefetch(panel + 1024, _MM_HINT_T0);
            const __m256 even0 = even_of(p0), even1 = even_of(p1);
            unrolled<R>([&](auto r) {
                const __m256 a = _mm256_broadcast_ss(x[r] + k);
                sum[r][0] = _mm256_fmadd_ps(even0, a, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(even1, a, sum[r][1]);
            });
            if (k + 1 == size) break;  // An odd last feature has no partner.
            const __m256 odd0 = odd_of(p0), odd1 = odd_of(p1);
            unrolled<R>([&](auto r) {
                const __m256 a = _mm256_broadcast_ss(x[r] + k + 1);
                sum[r][0] = _mm256_fmadd_ps(odd0, a, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(odd1, a, sum[r][1]);
            });
        }
        unrolled<R>([&](auto r) {
            _mm256_store_ps(out[r], sum[r][0]);
            _mm256_store_ps(out[r] + 8, sum[r][1]);
        });
    }
};

// Whole tiles of 32 input features, as AMX wants them: zeros after the last, as memory comes.
int64_t panel_bytes(int64_t in_features, int64_t) {
    return round_up(in_features, 32) * kPanel * 2;
}

uint16_t* element(const Weight& weight, int64_t row, int64_t k) {
    return reinterpret_cast<uint16_t*>(weight.panel(row / kPanel)) +
           (k / 2 * kPanel + row % kPanel) * 2 + k % 2;
}

void pack_row(Weight& weight, const Canonical& from, int64_t i) {
    const auto* source = reinterpret_cast<const uint16_t*>(
        static_cast<const char*>(from.weight) + i * from.stride);
    for (int64_t k = 0; k < weight.in_features; ++k)
        *element(weight, from.row_begin + i, k) = source[k];
}

void read_row(const Weight& weight, int64_t row, float* into) {
    for (int64_t k = 0; k < weight.in_features; ++k)
        into[k] = bf16_to_float(*element(weight, row, k));
}

}  // namespace

const PanelLayout kBfloat16Panels = {panel_bytes, pack_row, read_row};
const WeightKernel kBfloat16Avx2 = {"bf16-avx2", &kBfloat16Panels, nullptr,
                                    multiply<Bfloat16Micro>};

}  // namespace headstock
