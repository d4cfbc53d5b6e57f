// Normalising, rotating and storing what latent attention caches, and rotating its queries.
#include "latent.h"
#include "rotate.h"

namespace headstock {
namespace {

void store(const LatentPages& pages, int64_t slot, int64_t begin, const float* x, int64_t size) {
    char* to = pages.at(slot) + begin * pages.element_bytes();
    if (pages.element == static_cast<int64_t>(Element::kFloat32)) {
        std::memcpy(to, x, static_cast<size_t>(size) * sizeof(float));
        return;
    }
    auto* narrow = reinterpret_cast<uint16_t*>(to);
    const bool is_half = pages.element == static_cast<int64_t>(Element::kFloat16);
    for (int64_t i = 0; i < size; ++i)
        narrow[i] = is_half ? _cvtss_sh(x[i], _MM_FROUND_TO_NEAREST_INT) : float_to_bf16(x[i]);
}

// Normalises as the op rms_norm does; 8 divides `size`.
void norm(const float* x, const float* weight, double eps, float* y, int64_t size) {
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    const float mean = sum8(squares) / static_cast<float>(size);
    const __m256 inverse = _mm256_set1_ps(1.0f / std::sqrt(mean + static_cast<float>(eps)));
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
    }
}

void run_prepare(const void* untyped, int64_t token, const Worker& worker) {
    const auto& args = *static_cast<const LatentPrepareArgs*>(untyped);
    const LatentPages& pages = args.pages;
    const int64_t latent_size = pages.latent_size, rotary_size = pages.rotary_size;
    const float* kv = args.kv + token * args.kv_stride;
    auto* scratch = reinterpret_cast<float*>(worker.local);
    norm(kv, args.norm, args.eps, scratch, latent_size);
    float* key = scratch + latent_size;
    std::memcpy(key, kv + latent_size, static_cast<size_t>(rotary_size) * sizeof(float));
    if (args.cos_sin) {
        const float* cos_sin = args.cos_sin + args.positions[token] * rotary_size;
        const bool is_interleaved = args.is_interleaved != 0;
        rotate_pairs(key, cos_sin, rotary_size / 2, is_interleaved);
        for (int64_t h = 0; h < args.num_heads; ++h) {
            float* q = args.q + (token * args.num_heads + h + 1) * args.query_size - rotary_size;
            rotate_pairs(q, cos_sin, rotary_size / 2, is_interleaved);
        }
    }
    store(pages, args.write_slots[token], 0, scratch, pages.cached_size());
}

void run_write(const void* untyped, int64_t token, const Worker&) {
    const auto& args = *static_cast<const LatentWriteArgs*>(untyped);
    const LatentPages& pages = args.pages;
    const int64_t slot = args.write_slots[token];
    store(pages, slot, 0, args.latents + token * args.latent_stride, pages.latent_size);
    store(pages, slot, pages.latent_size, args.keys + token * args.key_stride, pages.rotary_size);
}

}  // namespace

void plan_latent_prepare(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<LatentPrepareArgs>(untyped);
    list.need_local(static_cast<size_t>(args.pages.cached_size()) * sizeof(float));
    list.add(run_prepare, untyped, args.tokens);
}

void plan_latent_write(const int64_t* untyped, PhaseList& list) {
    list.add(run_write, untyped, as<LatentWriteArgs>(untyped).tokens);
}

}  // namespace headstock
