// Preparing queries, keys and values: norms, rotation, and storing into pages.
#include "kernels.h"
#include "rotate.h"

namespace headstock {
namespace {

struct ToFloat32 {
    using Type = float;
    static float of(float value) { return value; }
};
struct ToBfloat16 {
    using Type = uint16_t;
    static uint16_t of(float value) { return float_to_bf16(value); }
};
struct ToFloat16 {
    using Type = uint16_t;
    static uint16_t of(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
};

// Stores one token's key and value of one head.
template <class To>
void store_as(const Pages& pages, int64_t slot, int64_t head, const float* k, const float* v) {
    const int64_t page = slot / pages.page_size, token = slot % pages.page_size;
    const int64_t size = pages.head_dim, step = pages.page_size;
    auto* keys = reinterpret_cast<typename To::Type*>(pages.keys(page, head)) + token;
    for (int64_t d = 0; d < size; ++d) keys[d * step] = To::of(k[d]);
    auto* values = reinterpret_cast<typename To::Type*>(pages.values(page, head)) + token * size;
    for (int64_t d = 0; d < size; ++d) values[d] = To::of(v[d]);
}

// Eight numbers up to 127 to whole ones.
struct ToInt8 {
    static constexpr float kLargest = 127.0f;
    static __m256i of(__m256 x) { return _mm256_cvtps_epi32(x); }
};

// Eight numbers up to 448 to codes of e4m3, to the nearest, ties to even.
struct ToFp8 {
    static constexpr float kLargest = 448.0f;
    static __m256i of(__m256 x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i sign = _mm256_and_si256(bits, _mm256_set1_epi32(INT32_MIN));
        const __m256i magnitude = _mm256_xor_si256(bits, sign);
        const __m256i odd =
            _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(
            magnitude, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
        const __m256i normal =
            _mm256_sub_epi32(_mm256_srli_epi32(rounded, 20), _mm256_set1_epi32(120 << 3));
        // Under 2^-6 they are multiples of 2^-9.
        const __m256 value = _mm256_castsi256_ps(magnitude);
        const __m256i small = _mm256_cvtps_epi32(_mm256_mul_ps(value, _mm256_set1_ps(512.0f)));
        const __m256 is_small = _mm256_cmp_ps(value, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ);
        const __m256i code = _mm256_blendv_epi8(normal, small, _mm256_castps_si256(is_small));
        return _mm256_or_si256(code, _mm256_srli_epi32(sign, 24));
    }
};

// Turns x into numbers of 8 bits and returns their scale. What is not finite makes the scale
// not a number, so that it is not lost.
template <class To>
float narrow(const float* x, int64_t size, char* into, int64_t step) {
    __m256 largest = _mm256_setzero_ps(), poison = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        largest = _mm256_max_ps(largest, abs8(v));
        poison = _mm256_fmadd_ps(v, _mm256_setzero_ps(), poison);
    }
    const float scale = max8(largest) / To::kLargest;
    const __m256 unit = _mm256_set1_ps(scale > 0 ? scale : 1.0f);
    for (int64_t i = 0; i < size; i += 8) {
        const __m256i codes = To::of(_mm256_div_ps(_mm256_loadu_ps(x + i), unit));
        alignas(32) int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), codes);
        for (int64_t j = 0; j < 8; ++j) into[(i + j) * step] = static_cast<char>(lanes[j]);
    }
    return scale + sum8(poison);
}

template <class To>
void store_narrow(const Pages& pages, int64_t slot, int64_t head, const float* k, const float* v) {
    const int64_t page = slot / pages.page_size, token = slot % pages.page_size;
    const int64_t size = pages.head_dim;
    char *keys = pages.keys(page, head), *values = pages.values(page, head);
    pages.scales(keys)[token] = narrow<To>(k, size, keys + token, pages.page_size);
    pages.scales(values)[token] = narrow<To>(v, size, values + token * size, 1);
}

void store(const Pages& pages, int64_t slot, int64_t head, const float* k, const float* v) {
    switch (static_cast<Element>(pages.element)) {
        case Element::kFloat32: store_as<ToFloat32>(pages, slot, head, k, v); break;
        case Element::kBfloat16: store_as<ToBfloat16>(pages, slot, head, k, v); break;
        case Element::kFloat16: store_as<ToFloat16>(pages, slot, head, k, v); break;
        case Element::kInt8: store_narrow<ToInt8>(pages, slot, head, k, v); break;
        case Element::kFp8: store_narrow<ToFp8>(pages, slot, head, k, v); break;
    }
}

// Without `weight` it is ones.
void norm_head(float* x, const float* weight, int64_t size, double eps) {
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    const float mean = sum8(squares) / static_cast<float>(size);
    const __m256 inverse = _mm256_set1_ps(1.0f / std::sqrt(mean + static_cast<float>(eps)));
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse);
        _mm256_storeu_ps(x + i, weight ? _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)) : v);
    }
}

void prepare_head(const RotateArgs& args, float* x, const float* norm, const float* cos_sin) {
    const bool is_normed_last = (args.order & kNormedLast) != 0;
    if (norm && !is_normed_last) norm_head(x, norm, args.pages.head_dim, args.eps);
    if (cos_sin) rotate_pairs(x, cos_sin, args.rotated / 2, (args.order & kInterleaved) != 0);
    if (norm && is_normed_last) norm_head(x, norm, args.pages.head_dim, args.eps);
}

void rotate_token(const RotateArgs& args, int64_t token, float* scratch) {
    const Pages& pages = args.pages;
    const int64_t size = pages.head_dim, heads = args.num_heads, kv_heads = pages.num_kv_heads;
    const auto bytes = static_cast<size_t>(size) * sizeof(float);
    const float* from = args.qkv + token * args.qkv_stride;
    const float* cos_sin =
        args.cos_sin ? args.cos_sin + args.positions[token] * args.rotated : nullptr;
    for (int64_t h = 0; h < heads; ++h) {
        float* q = args.q + (token * heads + h) * size;
        std::memcpy(q, from + h * size, bytes);
        prepare_head(args, q, args.q_norm, cos_sin);
    }
    if (kv_heads == 0) return;
    const int64_t slot = args.write_slots[token];
    const int64_t values = (args.order & kKeysAsValues) ? heads : heads + kv_heads;
    for (int64_t h = 0; h < kv_heads; ++h) {
        std::memcpy(scratch, from + (heads + h) * size, bytes);
        prepare_head(args, scratch, args.k_norm, cos_sin);
        const float* v = from + (values + h) * size;
        if (args.order & kNormedValues) {
            std::memcpy(scratch + size, v, bytes);
            norm_head(scratch + size, nullptr, size, args.eps);
            v = scratch + size;
        }
        store(pages, slot, h, scratch, v);
    }
}

// Neighbouring tokens share cache lines of their page: one thread does a page of a long row.
int64_t tokens_per_chunk(int64_t tokens) { return tokens >= 64 ? 16 : 1; }

void run_rotate(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const RotateArgs*>(untyped);
    const int64_t step = tokens_per_chunk(args.tokens);
    const int64_t last = min64((chunk + 1) * step, args.tokens);
    for (int64_t token = chunk * step; token < last; ++token)
        rotate_token(args, token, reinterpret_cast<float*>(worker.local));
}

void run_write(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const WriteArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.tokens);
    for (int64_t token = chunk * kRowsPerChunk; token < last; ++token)
        for (int64_t h = 0; h < args.pages.num_kv_heads; ++h) {
            const int64_t at = h * args.pages.head_dim, slot = args.write_slots[token];
            store(args.pages, slot, h, args.k + token * args.k_stride + at,
                  args.v + token * args.v_stride + at);
        }
}

}  // namespace

void plan_rotate(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<RotateArgs>(untyped);
    list.need_local(2 * static_cast<size_t>(args.pages.head_dim) * sizeof(float));
    const int64_t step = tokens_per_chunk(args.tokens);
    list.add(run_rotate, untyped, (args.tokens + step - 1) / step);
}

void plan_write(const int64_t* args, PhaseList& list) {
    list.add_rows(run_write, args, as<WriteArgs>(args).tokens, kRowsPerChunk);
}

}  // namespace headstock
