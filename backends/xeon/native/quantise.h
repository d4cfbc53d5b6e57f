// Activations as integers: one scale for each row and group of input features.
//
// Scratch holds, one after another, each from a multiple of 64 bytes on:
//     integers [M, in_features], scales [M, groups], sums [M, groups] (of the rounded values).
#pragma once

#include "numbers.h"
#include "weight.h"

namespace headstock {

template <class T>
struct Quantised {
    T* values;
    float* scales;
    float* sums;
    int64_t row_size;
    int64_t num_groups;
};

static inline int64_t aligned64(int64_t bytes) { return round_up(bytes, 64); }

template <class T>
static inline Quantised<T> quantised_at(const LinearArgs& args, const char* shared) {
    const Weight& weight = *args.weight;
    const int64_t size = weight.in_features, groups = weight.num_groups();
    char* values = const_cast<char*>(shared);
    char* scales = values + aligned64(args.m * size * static_cast<int64_t>(sizeof(T)));
    char* sums = scales + aligned64(args.m * groups * 4);
    return {reinterpret_cast<T*>(values), reinterpret_cast<float*>(scales),
            reinterpret_cast<float*>(sums), size, groups};
}

template <class T>
static inline size_t quantised_bytes(const LinearArgs& args) {
    const Weight& weight = *args.weight;
    return static_cast<size_t>(
        aligned64(args.m * weight.in_features * static_cast<int64_t>(sizeof(T))) +
        2 * aligned64(args.m * weight.num_groups() * 4));
}

// Plans the phase that quantises args.x into scratch: to 16 bits for int8 weights (the products of
// 16-bit integers are as fast here and lose next to nothing), to 8 bits for int4 weights.
void plan_quantise16(const LinearArgs& args, PhaseList& list);
void plan_quantise8(const LinearArgs& args, PhaseList& list);

// Plans the phase that quantises each row to two rows of 8 bits: the values, and what rounding them
// left. Scratch is laid out for `doubled(args)`; the products of the two rows are to be added up.
void plan_quantise_twice(const LinearArgs& args, PhaseList& list);

static inline LinearArgs doubled(LinearArgs args) {
    args.m *= 2;
    return args;
}

}  // namespace headstock
