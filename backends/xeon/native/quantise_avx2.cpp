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
    const auto to = quantised16_at(args, worker.shared);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.m);
    for (int64_t m = chunk * kRowsPerChunk; m < last; ++m)
        for (int64_t g = 0; g < to.num_groups; ++g)
            quantise_group16<GROUP>(args.x + m * args.x_stride + g * GROUP,
                                    to.values + m * to.row_size + g * GROUP,
                                    to.scales + m * to.num_groups + g);
}

// Rounds what rounding left of a group.
inline void quantise_rest(const float* x, const Rounded8& whole, const Rounded8& rest) {
    float left[32];
    for (int i = 0; i < 32; ++i) left[i] = x[i] - static_cast<float>(whole.values[i]) * *whole.scales;
    quantise_group8(left, rest.values, rest.scales, rest.sums);
}

void quantise_row8(const float* x, const Quantised8& to, int64_t m) {
    const Rounded8 whole = from_row(to, to.whole, m);
    const Rounded8 rest = from_row(to, to.rest, m);
    float squares = 0;
    for (int64_t g = 0; g < to.num_groups; ++g) {
        quantise_group8(x + g * 32, from_group(whole, g).values, whole.scales + g, whole.sums + g);
        squares += whole.scales[g] * whole.scales[g];
    }
    const float from = kRestFrom * squares / static_cast<float>(to.num_groups);
    uint64_t* has_rest = to.has_rest + m * to.num_words;
    for (int64_t w = 0; w < to.num_words; ++w) has_rest[w] = 0;
    for (int64_t g = 0; g < to.num_groups; ++g) {
        if (whole.scales[g] * whole.scales[g] <= from) continue;
        quantise_rest(x + g * 32, from_group(whole, g), from_group(rest, g));
        has_rest[g / 64] |= uint64_t{1} << g % 64;
    }
}

void quantise_rows8(const void* untyped, int64_t chunk, const Worker& worker) {
    const LinearArgs& args = *static_cast<const LinearArgs*>(untyped);
    const Quantised8 to = quantised8_at(args, worker.shared);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.m);
    for (int64_t m = chunk * kRowsPerChunk; m < last; ++m)
        quantise_row8(args.x + m * args.x_stride, to, m);
}

}  // namespace

void plan_quantise16(const LinearArgs& args, PhaseList& list) {
    list.need_shared(quantised16_bytes(args));
    const bool is_small = args.weight->group == 16;
    list.add_rows_to_scratch(is_small ? quantise_rows16<16> : quantise_rows16<32>, &args, args.m,
                             kRowsPerChunk);
}

void plan_quantise8(const LinearArgs& args, PhaseList& list) {
    list.need_shared(quantised8_bytes(args));
    list.add_rows_to_scratch(quantise_rows8, &args, args.m, kRowsPerChunk);
}

}  // namespace headstock
