// What this processor can do.
#pragma once

#include <cstdint>

namespace headstock {

enum Feature : int64_t {
    kAvx2 = 1,         // AVX2, FMA and F16C, and the system saves their registers.
    kAvx512 = 2,       // AVX-512 F, BW, VL, DQ.
    kAvx512Vnni = 4,
    kAvx512Bf16 = 8,
    kAmxInt8 = 16,     // And the system lets this process use the tiles.
    kAmxBf16 = 32,
    kModel = 1 << 20,     // For tests: run the kernels of the other sets as scalar models.
    kMeasured = 1 << 21,  // Take the kernel that is quickest here, not the first in the list.
};

// Returns the features by CPUID and XGETBV, as a sum of Feature bits.
int64_t detect_features();

}  // namespace headstock
