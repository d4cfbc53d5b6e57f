// The kernels that may multiply a weight, and the memory of one.
#include "weight.h"

#include <new>

#include "cpu.h"
#include "memory.h"
#include "weight_kernels.h"

namespace headstock {

namespace {

// A kernel, what it needs, and its model; of a kind the best first, as benchmarks/xeon_sets.py has
// measured on processors with AMX: products of int8 are too short there, one group of 32 at a time.
// It is taken where measure.cpp finds none that is clearly quicker on the machine at hand.
struct Offer {
    WeightKind kind;
    int64_t group;
    int64_t needs;
    const WeightKernel* kernel;
    const WeightKernel* model;
};

const Offer kOffers[] = {
    {WeightKind::kFloat32, 0, kAvx512, &kFloat32Avx512, &kFloat32Avx512Model},
    {WeightKind::kFloat32, 0, kAvx2, &kFloat32Avx2, &kFloat32Avx2},
    {WeightKind::kBfloat16, 0, kAmxBf16, &kBfloat16Amx, &kBfloat16AmxModel},
    {WeightKind::kBfloat16, 0, kAvx512Bf16, &kBfloat16Avx512, &kBfloat16Avx512Model},
    {WeightKind::kBfloat16, 0, kAvx2, &kBfloat16Avx2, &kBfloat16Avx2},
    {WeightKind::kInt8, 32, kAvx512Vnni, &kInt8Vnni, &kInt8VnniModel},
    {WeightKind::kInt8, 32, kAmxInt8, &kInt8Amx, &kInt8AmxModel},
    {WeightKind::kInt8, 32, kAvx2, &kInt8Avx2, &kInt8Avx2},
    {WeightKind::kInt8, 16, kAvx512Vnni, &kInt8Group16Vnni, &kInt8Group16VnniModel},
    {WeightKind::kInt8, 16, kAvx2, &kInt8Group16Avx2, &kInt8Group16Avx2},
    {WeightKind::kInt4, 32, kAvx512Vnni, &kInt4Vnni, &kInt4VnniModel},
    {WeightKind::kInt4, 32, kAvx2, &kInt4Avx2, &kInt4Avx2},
};

}  // namespace

std::vector<const WeightKernel*> allowed_kernels(WeightKind kind, int64_t group, int64_t features) {
    std::vector<const WeightKernel*> allowed;
    for (const Offer& offer : kOffers)
        if (offer.kind == kind && offer.group == group && (features & offer.needs))
            allowed.push_back(features & kModel ? offer.model : offer.kernel);
    return allowed;
}

Weight* new_weight(const WeightKernel* kernel, WeightKind kind, int64_t in_features,
                   int64_t out_features, int64_t group) {
    auto* weight = new (std::nothrow) Weight{};
    if (!weight) return nullptr;
    weight->kind = kind;
    weight->in_features = in_features;
    weight->out_features = out_features;
    weight->group = group;
    weight->kernel = kernel;
    weight->num_panels = (out_features + kPanel - 1) / kPanel;
    weight->panel_bytes = kernel->layout->panel_bytes(in_features, group);
    const auto rows = static_cast<size_t>(weight->num_panels * kPanel);
    weight->data = static_cast<char*>(
        allocate_pages(static_cast<size_t>(weight->num_panels * weight->panel_bytes)));
    weight->row_factor = static_cast<float*>(allocate_pages(rows * sizeof(float)));
    weight->bias = static_cast<float*>(allocate_pages(rows * sizeof(float)));
    if (!weight->data || !weight->row_factor || !weight->bias) {
        free_weight(weight);
        return nullptr;
    }
    for (size_t i = 0; i < rows; ++i) weight->row_factor[i] = 1.0f;
    return weight;
}

void free_weight(Weight* weight) {
    if (!weight) return;
    const auto padded = static_cast<size_t>(weight->num_panels * kPanel) * sizeof(float);
    free_pages(weight->data, static_cast<size_t>(weight->num_panels * weight->panel_bytes));
    free_pages(weight->row_factor, padded);
    free_pages(weight->bias, padded);
    delete weight;
}

}  // namespace headstock
