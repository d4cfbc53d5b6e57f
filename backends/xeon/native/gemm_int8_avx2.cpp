// Int8 weights with a scale for every 32 (or 16) input features, 16-bit activations.
//
// A panel is a sequence of blocks, one a group: 16 float16 scales, then for each pair of input
// features 32 bytes, [16 output features][2]. vpmaddwd multiplies pairs of 16-bit integers and
// adds them into 32 bits: |127 * 32767 * 32| < 2^31, so nothing saturates. The alternative with
// vpmaddubsw needs a sign step, is no faster on these processors and has 8-bit activations.
#include "gemm.h"
#include "quantise.h"
#include "vector_avx2.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

constexpr int64_t block_bytes(int64_t group) { return 2 * kPanel + group * kPanel; }

// Adds products of pairs into `sum`. The empty statement makes the compiler leave the accumulator
// where it is: GCC 12 else moves loads of the unrolled block to its front, and spills.
HS_INLINE void add_products(__m256i& sum, __m256i w, __m256i a) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, a));
    __asm__("" : "+x"(sum));
}

HS_INLINE __m256i widened(const char* weights) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)weights));
}

HS_INLINE __m256i two_of(const int16_t* q) {
    int32_t two;
    std::memcpy(&two, q, 4);
    return _mm256_set1_epi32(two);
}

// Adds the products of one group, R rows at a time: bound by the multipliers.
template <int GROUP, int R>
HS_INLINE void add_group(const char* block, const int16_t* q, int64_t row_size, __m256i (*dot)[2]) {
    unrolled<GROUP / 2>([&](auto j) {
        const char* pairs = block + 2 * kPanel + j * 2 * kPanel;
        const __m256i w0 = widened(pairs), w1 = widened(pairs + kPanel);
        if (j % 2 == 0) _mm_prefetch(pairs + 1536, _MM_HINT_T0);
        unrolled<R>([&](auto r) {
            const __m256i a = two_of(q + r * row_size + 2 * j);
            add_products(dot[r][0], w0, a);
            add_products(dot[r][1], w1, a);
        });
    });
}

// The same for one row: bound by memory, where a small loop keeps more loads under way.
template <int GROUP>
HS_INLINE void add_group_of_one(const char* block, const int16_t* q, __m256i* dot) {
    const char* pairs = block + 2 * kPanel;
    for (int j = 0; j < GROUP / 2; ++j, pairs += 2 * kPanel) {
        if (j % 2 == 0) _mm_prefetch(pairs + 1536, _MM_HINT_T0);
        const __m256i a = two_of(q + 2 * j);
        dot[0] = _mm256_add_epi32(dot[0], _mm256_madd_epi16(widened(pairs), a));
        dot[1] = _mm256_add_epi32(dot[1], _mm256_madd_epi16(widened(pairs + kPanel), a));
    }
}

template <int GROUP>
struct Int8Micro {
    static constexpr int kRows = 4;

    template <int R>
    static void multiply(const Weight&, const char* block, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        const auto x = quantised16_at(args, shared);
        const int16_t* q = x.values + row * x.row_size;
        const float* scale = x.scales + row * x.num_groups;
        __m256 sum[R][2];
        unrolled<R>([&](auto r) { sum[r][0] = sum[r][1] = _mm256_setzero_ps(); });
        for (int64_t g = 0; g < x.num_groups; ++g, block += block_bytes(GROUP), q += GROUP) {
            __m256i dot[R][2];
            unrolled<R>([&](auto r) { dot[r][0] = dot[r][1] = _mm256_setzero_si256(); });
            if constexpr (R == 1) add_group_of_one<GROUP>(block, q, dot[0]);
            else add_group<GROUP, R>(block, q, x.row_size, dot);
            const auto* halves = reinterpret_cast<const uint16_t*>(block);
            const __m256 s0 = load_half(halves), s1 = load_half(halves + 8);
            unrolled<R>([&](auto r) {
                const __m256 s = _mm256_set1_ps(scale[r * x.num_groups + g]);
                sum[r][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][0]), _mm256_mul_ps(s0, s), sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][1]), _mm256_mul_ps(s1, s), sum[r][1]);
            });
        }
        unrolled<R>([&](auto r) {
            _mm256_store_ps(out[r], sum[r][0]);
            _mm256_store_ps(out[r] + 8, sum[r][1]);
        });
    }
};

int64_t panel_bytes(int64_t in_features, int64_t group) {
    return round_up(in_features / group * block_bytes(group), 64);
}

void pack_row(Weight& weight, const Canonical& from, int64_t i) {
    const int64_t row = from.row_begin + i, lane = row % kPanel, group = weight.group;
    const auto* source = static_cast<const int8_t*>(from.weight) + i * from.stride;
    const int64_t source_groups = weight.in_features / from.group;
    const float* scale = from.scale + i * source_groups;
    const float factor = half_factor(largest_scale(weight, from, i));
    weight.row_factor[row] = factor;
    char* block = weight.panel(row / kPanel);
    for (int64_t g = 0; g < weight.num_groups(); ++g, block += block_bytes(group), source += group) {
        const uint16_t half = float_to_half(scale[g * group / from.group] / factor);
        std::memcpy(block + 2 * lane, &half, 2);
        char* pairs = block + 2 * kPanel + lane * 2;
        for (int64_t j = 0; j < group / 2; ++j) std::memcpy(pairs + j * 2 * kPanel, source + 2 * j, 2);
    }
}

void read_row(const Weight& weight, int64_t row, float* into) {
    const int64_t lane = row % kPanel, group = weight.group;
    const char* block = weight.panel(row / kPanel);
    for (int64_t g = 0; g < weight.num_groups(); ++g, block += block_bytes(group), into += group) {
        uint16_t half;
        std::memcpy(&half, block + 2 * lane, 2);
        const float scale = half_to_float(half) * weight.row_factor[row];
        const auto* pairs = reinterpret_cast<const int8_t*>(block + 2 * kPanel + lane * 2);
        for (int64_t k = 0; k < group; ++k)
            into[k] = scale * static_cast<float>(pairs[k / 2 * 2 * kPanel + k % 2]);
    }
}

}  // namespace

const PanelLayout kInt8Panels = {panel_bytes, pack_row, read_row};
const WeightKernel kInt8Avx2 = {"int8-avx2", &kInt8Panels, plan_quantise16,
                                multiply<Int8Micro<32>>};
const WeightKernel kInt8Group16Avx2 = {"int8-g16-avx2", &kInt8Panels, plan_quantise16,
                                       multiply<Int8Micro<16>>};

}  // namespace headstock
