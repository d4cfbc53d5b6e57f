// Activations as integers: one scale for each row and group of input features.
//
// Scratch holds, one after another, each from a multiple of 64 bytes on, of 16-bit integers
//     integers [M, in_features], scales [M, groups]
// and of 8-bit integers
//     integers [M, in_features], scales [M, groups], sums [M, groups] (of the rounded values),
//     the same of rests, and a bit for each group that has one [M, words].
#pragma once

#include "numbers.h"
#include "weight.h"

namespace headstock {

struct Quantised16 {
    int16_t* values;
    float* scales;
    int64_t row_size;
    int64_t num_groups;
};

// Rows as sums of products need them: from row and group on, `row_size` and `num_groups` apart.
struct Rounded8 {
    int8_t* values;
    float* scales;
    float* sums;
};

// Rounding to 8 bits loses most where a group has an outlier, and a row's error is that of its few
// such groups. What rounding left of those is rounded again, and multiplied besides.
struct Quantised8 {
    Rounded8 whole;
    Rounded8 rest;       // Where has_rest says so.
    uint64_t* has_rest;  // Bit g % 64 of word g / 64.
    int64_t row_size;
    int64_t num_groups;
    int64_t num_words;
};

// A group has a rest if the square of its scale is more than this times the row's mean.
// Speed against accuracy, measured in docs/xeon.md: from 3 on the default model's greedy answers
// are no longer those of unrounded activations (tests/contract/test_docs_quickstart.py, slow).
constexpr float kRestFrom = 2.0f;

static inline int64_t aligned64(int64_t bytes) { return round_up(bytes, 64); }

static inline int64_t scale_bytes(const LinearArgs& args) {
    return aligned64(args.m * args.weight->num_groups() * 4);
}

static inline Quantised16 quantised16_at(const LinearArgs& args, const char* shared) {
    const int64_t size = args.weight->in_features;
    char* values = const_cast<char*>(shared);
    return {reinterpret_cast<int16_t*>(values),
            reinterpret_cast<float*>(values + aligned64(args.m * size * 2)), size,
            args.weight->num_groups()};
}

static inline size_t quantised16_bytes(const LinearArgs& args) {
    return static_cast<size_t>(aligned64(args.m * args.weight->in_features * 2) + scale_bytes(args));
}

static inline int64_t rounded8_bytes(const LinearArgs& args) {
    return aligned64(args.m * args.weight->in_features) + 2 * scale_bytes(args);
}

static inline Rounded8 rounded8_at(const LinearArgs& args, char* values) {
    char* scales = values + aligned64(args.m * args.weight->in_features);
    return {reinterpret_cast<int8_t*>(values), reinterpret_cast<float*>(scales),
            reinterpret_cast<float*>(scales + scale_bytes(args))};
}

static inline Quantised8 quantised8_at(const LinearArgs& args, const char* shared) {
    const int64_t groups = args.weight->num_groups();
    char* whole = const_cast<char*>(shared);
    char* rest = whole + rounded8_bytes(args);
    return {rounded8_at(args, whole), rounded8_at(args, rest),
            reinterpret_cast<uint64_t*>(rest + rounded8_bytes(args)), args.weight->in_features,
            groups, round_up(groups, 64) / 64};
}

static inline size_t quantised8_bytes(const LinearArgs& args) {
    const int64_t words = round_up(args.weight->num_groups(), 64) / 64;
    return static_cast<size_t>(2 * rounded8_bytes(args) + aligned64(args.m * words * 8));
}

HS_INLINE Rounded8 from_row(const Quantised8& x, const Rounded8& rows, int64_t row) {
    return {rows.values + row * x.row_size, rows.scales + row * x.num_groups,
            rows.sums + row * x.num_groups};
}

HS_INLINE Rounded8 from_group(const Rounded8& rows, int64_t g) {
    return {rows.values + g * 32, rows.scales + g, rows.sums + g};
}

// Calls `add(g, rest)` for every rest of a row, by rising g.
template <class Add>
HS_INLINE void for_each_rest(const Quantised8& x, int64_t row, Add add) {
    const Rounded8 rests = from_row(x, x.rest, row);
    for (int64_t w = 0; w < x.num_words; ++w)
        for (uint64_t bits = x.has_rest[row * x.num_words + w]; bits; bits &= bits - 1) {
            const int64_t g = w * 64 + __builtin_ctzll(bits);
            add(g, from_group(rests, g));
        }
}

// Plans the phase that quantises args.x into scratch: to 16 bits for int8 weights (the products of
// 16-bit integers are as fast here and lose next to nothing), to 8 bits for int4 weights.
void plan_quantise16(const LinearArgs& args, PhaseList& list);
void plan_quantise8(const LinearArgs& args, PhaseList& list);

}  // namespace headstock
