// The weight kernels there are: one file each.
#pragma once

#include "weight.h"

namespace headstock {

extern const PanelLayout kFloat32Panels;
extern const PanelLayout kBfloat16Panels;
extern const PanelLayout kInt8Panels;
extern const PanelLayout kInt4Panels;

extern const WeightKernel kFloat32Avx2;
extern const WeightKernel kBfloat16Avx2;
extern const WeightKernel kInt8Avx2;
extern const WeightKernel kInt8Group16Avx2;
extern const WeightKernel kInt4Avx2;

extern const WeightKernel kFloat32Avx512, kFloat32Avx512Model;
extern const WeightKernel kBfloat16Avx512, kBfloat16Avx512Model;
extern const WeightKernel kBfloat16Amx, kBfloat16AmxModel;
extern const WeightKernel kInt8Vnni, kInt8VnniModel;
extern const WeightKernel kInt8Group16Vnni, kInt8Group16VnniModel;
extern const WeightKernel kInt8Amx, kInt8AmxModel;
extern const WeightKernel kInt4Vnni, kInt4VnniModel;

}  // namespace headstock
