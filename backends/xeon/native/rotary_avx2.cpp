// Preparing queries, keys and values: norms, rotation, and storing into pages.
#include "kernels.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

inline void store_element(const Pages& pages, char* to, int64_t index, float value) {
    switch (static_cast<Element>(pages.element)) {
        case Element::kFloat32: reinterpret_cast<float*>(to)[index] = value; break;
        case Element::kBfloat16: reinterpret_cast<uint16_t*>(to)[index] = float_to_bf16(value); break;
        case Element::kFloat16:
            reinterpret_cast<uint16_t*>(to)[index] = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
    }
}

void store_key(const Pages& pages, int64_t slot, int64_t head, const float* k) {
    char* keys = pages.keys(slot / pages.page_size, head);
    const int64_t token = slot % pages.page_size;
    for (int64_t d = 0; d < pages.head_dim; ++d)
        store_element(pages, keys, d * pages.page_size + token, k[d]);
}

void store_value(const Pages& pages, int64_t slot, int64_t head, const float* v) {
    char* values = pages.values(slot / pages.page_size, head);
    const int64_t first = slot % pages.page_size * pages.head_dim;
    for (int64_t d = 0; d < pages.head_dim; ++d) store_element(pages, values, first + d, v[d]);
}

void norm_head(float* x, const float* weight, int64_t size, double eps) {
    float squares = 0;
    for (int64_t i = 0; i < size; ++i) squares += x[i] * x[i];
    const float mean = squares / static_cast<float>(size);
    const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(eps));
    for (int64_t i = 0; i < size; ++i) x[i] = x[i] * inverse * weight[i];
}

// Rotates the first `rotated` features: pairs are halves, or neighbours when interleaved.
void rotate_head(float* x, const float* cos_sin, int64_t rotated, bool is_interleaved) {
    const int64_t half = rotated / 2, step = is_interleaved ? 2 : 1;
    const int64_t partner = is_interleaved ? 1 : half;
    const float *cosines = cos_sin, *sines = cos_sin + half;
    for (int64_t i = 0; i < half; ++i) {
        const float first = x[i * step], second = x[i * step + partner];
        x[i * step] = first * cosines[i] - second * sines[i];
        x[i * step + partner] = second * cosines[i] + first * sines[i];
    }
}

void prepare_head(const RotateArgs& args, float* x, const float* norm, const float* cos_sin) {
    if (norm) norm_head(x, norm, args.pages.head_dim, args.eps);
    if (cos_sin) rotate_head(x, cos_sin, args.rotated, args.is_interleaved != 0);
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
    const int64_t slot = args.write_slots[token];
    for (int64_t h = 0; h < kv_heads; ++h) {
        std::memcpy(scratch, from + (heads + h) * size, bytes);
        prepare_head(args, scratch, args.k_norm, cos_sin);
        store_key(pages, slot, h, scratch);
        store_value(pages, slot, h, from + (heads + kv_heads + h) * size);
    }
}

void run_rotate(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const RotateArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.tokens);
    for (int64_t token = chunk * kRowsPerChunk; token < last; ++token)
        rotate_token(args, token, reinterpret_cast<float*>(worker.local));
}

void run_write(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const WriteArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.tokens);
    for (int64_t token = chunk * kRowsPerChunk; token < last; ++token)
        for (int64_t h = 0; h < args.pages.num_kv_heads; ++h) {
            const int64_t at = h * args.pages.head_dim, slot = args.write_slots[token];
            store_key(args.pages, slot, h, args.k + token * args.k_stride + at);
            store_value(args.pages, slot, h, args.v + token * args.v_stride + at);
        }
}

}  // namespace

void plan_rotate(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<RotateArgs>(untyped);
    list.need_local(static_cast<size_t>(args.pages.head_dim) * sizeof(float));
    list.add_rows(run_rotate, untyped, args.tokens, kRowsPerChunk);
}

void plan_write(const int64_t* args, PhaseList& list) {
    list.add_rows(run_write, args, as<WriteArgs>(args).tokens, kRowsPerChunk);
}

}  // namespace headstock
