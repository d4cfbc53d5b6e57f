// Choosing a kernel for a weight, and packing and reading rows whatever the kernel.
#include "weight.h"

#include "cpu.h"
#include "weight_kernels.h"

namespace headstock {

namespace {

// A kernel, what it needs, and its model; of a kind the best first, as benchmarks/xeon_sets.py has
// measured on processors with AMX: products of int8 are too short there, one group of 32 at a time.
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

const WeightKernel* choose_weight_kernel(WeightKind kind, int64_t group, int64_t features) {
    for (const Offer& offer : kOffers)
        if (offer.kind == kind && offer.group == group && (features & offer.needs))
            return features & kModel ? offer.model : offer.kernel;
    return nullptr;
}

}  // namespace headstock
