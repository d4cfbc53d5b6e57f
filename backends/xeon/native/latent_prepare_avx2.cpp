// Normalising, rotating and storing what latent attention caches, and rotating its queries.
#include "latent.h"
#include "narrow.h"
#include "norm_row.h"
#include "rotate.h"

namespace headstock {
namespace {

void store(const LatentPages& pages, int64_t slot, int64_t begin, const float* x, int64_t size) {
    store_row(pages.at(slot) + begin * pages.element_bytes(), pages.element, x, size);
}

void run_prepare(const void* untyped, int64_t token, const Worker& worker) {
    const auto& args = *static_cast<const LatentPrepareArgs*>(untyped);
    const LatentPages& pages = args.pages;
    const int64_t latent_size = pages.latent_size, rotary_size = pages.rotary_size;
    const float* kv = args.kv + token * args.kv_stride;
    auto* scratch = reinterpret_cast<float*>(worker.local);
    norm_row(kv, args.norm, static_cast<float>(args.eps), scratch, latent_size);
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
