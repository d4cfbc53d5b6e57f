// The weight kernels there are: one file each.
#pragma once

#include "weight.h"

namespace headstock {

extern const WeightKernel kFloat32Avx2;
extern const WeightKernel kBfloat16Avx2;
extern const WeightKernel kInt8Avx2;
extern const WeightKernel kInt8Group16Avx2;
extern const WeightKernel kInt4Avx2;

}  // namespace headstock
