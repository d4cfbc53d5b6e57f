// Activations as two bfloat16 numbers each, x = high + low up to 2^-17 of it: what the bfloat16
// units multiply, at next to float32 accuracy.
//
// Scratch holds, one after another: high [M, size], low [M, size], with `size` the input features
// rounded up to 32 and zeros after the last.
#pragma once

#include "numbers.h"
#include "weight.h"

namespace headstock {

struct Halves {
    uint16_t* high;
    uint16_t* low;
    int64_t row_size;
};

static inline Halves halves_at(const LinearArgs& args, const char* shared) {
    const int64_t size = round_up(args.weight->in_features, 32);
    auto* high = reinterpret_cast<uint16_t*>(const_cast<char*>(shared));
    return {high, high + round_up(args.m, 16) * size, size};
}

// Plans the phase that splits args.x into scratch.
void plan_halves(const LinearArgs& args, PhaseList& list);

}  // namespace headstock
