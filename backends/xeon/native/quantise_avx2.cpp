#include "quantise.h"

#include "vector_avx2.h"

namespace headstock {
namespace {

// Loads 8 values of a group and folds them into the group's largest magnitude.
template <int GROUP>
inline float largest_of(const float* x) {
    __m256 largest = _mm256_setzero_ps();
    for (int i = 0; i < GROUP; i += 8) largest = _mm256_max_ps(largest, abs8(_mm256_loadu_ps(x + i)));
    return max8(largest);
}

inline __m256i rounded(const float* x, __m256 inverse) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
}

template <int GROUP>
inline void quantise_group16(const float* x, int16_t* q, float* scale) {
    const float largest = largest_of<GROUP>(x);
    *scale = largest / 32767.0f;
    const __m256 inverse = _mm256_set1_ps(largest > 0 ? 32767.0f / largest : 0.0f);
    for (int i = 0; i < GROUP; i += 16) {
        const __m256i packed = _mm256_packs_epi32(rounded(x + i, inverse), rounded(x + i + 8, inverse));
        _mm256_storeu_si256((__m256i*)(q + i), _mm256_permute4x64_epi64(packed, 0xd8));
    }
}

inline void quantise_group8(const float* x, int8_t* q, float* scale, float* sum) {
    const float largest = largest_of<32>(x);
    *scale = largest / 127.0f;
    const __m256 inverse = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    const __m256i low = _mm256_packs_epi32(rounded(x, inverse), rounded(x + 8, inverse));
    const __m256i high = _mm256_packs_epi32(rounded(x + 16, inverse), rounded(x + 24, inverse));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    _mm256_storeu_si256((__m256i*)q, packed);
    // The sum is of the rounded values: then an output's error is weight times rounding error, where
    // weights average zero, and not nibble times rounding error, where nibbles average 7.5.
    const __m256i pairs = _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1));
    *sum = sum8(_mm256_cvtepi32_ps(pairs)) * *scale;
}

template <int GROUP>
void quantise_rows16(const void* untyped, int64_t chunk, const Worker& worker) {
    const LinearArgs& args = *static_cast<const LinearArgs*>(untyped);
    const auto to = quantised_at<int16_t>(args, worker.shared);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.m);
    for (int64_t m = chunk * kRowsPerChunk; m < last; ++m)
        for (int64_t g = 0; g < to.num_groups; ++g)
            quantise_group16<GROUP>(args.x + m * args.x_stride + g * GROUP,
                                    to.values + m * to.row_size + g * GROUP,
                                    to.scales + m * to.num_groups + g);
}

void quantise_rows8(const void* untyped, int64_t chunk, const Worker& worker) {
    const LinearArgs& args = *static_cast<const LinearArgs*>(untyped);
    const auto to = quantised_at<int8_t>(args, worker.shared);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.m);
    for (int64_t m = chunk * kRowsPerChunk; m < last; ++m)
        for (int64_t g = 0; g < to.num_groups; ++g) {
            const int64_t at = m * to.num_groups + g;
            quantise_group8(args.x + m * args.x_stride + g * 32,
                            to.values + m * to.row_size + g * 32, to.scales + at, to.sums + at);
        }
}

void quantise_rows_twice(const void* untyped, int64_t chunk, const Worker& worker) {
    const LinearArgs& args = *static_cast<const LinearArgs*>(untyped);
    const auto to = quantised_at<int8_t>(doubled(args), worker.shared);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.m);
    for (int64_t m = chunk * kRowsPerChunk; m < last; ++m)
        for (int64_t g = 0; g < to.num_groups; ++g) {
            const int64_t at = 2 * m * to.num_groups + g, next = at + to.num_groups;
            const float* x = args.x + m * args.x_stride + g * 32;
            int8_t* q = to.values + 2 * m * to.row_size + g * 32;
            quantise_group8(x, q, to.scales + at, to.sums + at);
            float rest[32];
            for (int i = 0; i < 32; ++i) rest[i] = x[i] - static_cast<float>(q[i]) * to.scales[at];
            quantise_group8(rest, q + to.row_size, to.scales + next, to.sums + next);
        }
}

}  // namespace

void plan_quantise_twice(const LinearArgs& args, PhaseList& list) {
    list.need_shared(quantised_bytes<int8_t>(doubled(args)));
    list.add_rows_to_scratch(quantise_rows_twice, &args, args.m, kRowsPerChunk);
}

void plan_quantise16(const LinearArgs& args, PhaseList& list) {
    list.need_shared(quantised_bytes<int16_t>(args));
    const bool is_small = args.weight->group == 16;
    list.add_rows_to_scratch(is_small ? quantise_rows16<16> : quantise_rows16<32>, &args, args.m,
                             kRowsPerChunk);
}

void plan_quantise8(const LinearArgs& args, PhaseList& list) {
    list.need_shared(quantised_bytes<int8_t>(args));
    list.add_rows_to_scratch(quantise_rows8, &args, args.m, kRowsPerChunk);
}

}  // namespace headstock
