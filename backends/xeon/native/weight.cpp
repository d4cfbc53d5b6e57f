// Choosing a kernel for a weight, and packing and reading rows whatever the kernel.
#include "weight.h"

#include "cpu.h"
#include "weight_kernels.h"

namespace headstock {

const WeightKernel* choose_weight_kernel(WeightKind kind, int64_t group, int64_t features) {
    if (!(features & kAvx2)) return nullptr;
    switch (kind) {
        case WeightKind::kFloat32: return group == 0 ? &kFloat32Avx2 : nullptr;
        case WeightKind::kBfloat16: return group == 0 ? &kBfloat16Avx2 : nullptr;
        case WeightKind::kInt8:
            if (group == 32) return &kInt8Avx2;
            return group == 16 ? &kInt8Group16Avx2 : nullptr;
        case WeightKind::kInt4: return group == 32 ? &kInt4Avx2 : nullptr;
    }
    return nullptr;
}

}  // namespace headstock
