// A packed weight matrix, and what an instruction set brings to multiply by it.
//
// Packed rows stand in panels of kPanel output features. What a panel looks like is the business
// of the kernel that was chosen for the processor; the rest sees only this file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "program.h"

namespace headstock {

constexpr int kPanel = 16;  // Output features whose weights are interleaved.

enum class WeightKind : int64_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt4 = 3 };

struct WeightKernel;

struct Weight {
    WeightKind kind;
    int64_t in_features;
    int64_t out_features;
    int64_t group;         // Input features that share a scale in the packed form; 0: dense.
    int64_t num_panels;
    int64_t panel_bytes;   // A multiple of 64.
    char* data;
    float* row_factor;     // Quantised: a power of two that scales the row; see pack. [panels * 16]
    float* bias;           // Zeros where there is none. [panels * 16]
    const WeightKernel* kernel;

    char* panel(int64_t p) const { return data + p * panel_bytes; }
    int64_t num_groups() const { return group ? in_features / group : 0; }
};

// Canonical rows to be packed: `weight` and `stride` in the layout's own element type.
struct Canonical {
    const void* weight;     // float32, bfloat16 bits, int8 or nibble pairs. [rows, ...]
    int64_t stride;         // Bytes from one row to the next.
    const float* scale;     // [rows, groups of the canonical form]
    const float* minimum;   // Int4 only.
    int64_t group;          // Of the canonical form; a multiple of the packed one.
    int64_t num_rows;
    int64_t row_begin;      // Output feature of the first row.
};

// Returns the largest magnitude among the scales (and minima) of canonical row `i`.
static inline float largest_scale(const Weight& weight, const Canonical& from, int64_t i) {
    const int64_t groups = weight.in_features / from.group;
    float largest = 0;
    for (int64_t g = i * groups; g < (i + 1) * groups; ++g) {
        largest = std::fmax(largest, std::fabs(from.scale[g]));
        if (from.minimum) largest = std::fmax(largest, std::fabs(from.minimum[g]));
    }
    return largest;
}

struct LinearArgs {
    const Weight* weight;
    const float* x;         // [M, in_features]
    int64_t x_stride;       // Elements.
    float* y;               // [M, out_features]
    int64_t y_stride;
    int64_t m;
};

// Part of a product: panels [first_panel, last_panel), rows [first_row, last_row).
struct Block {
    int64_t first_panel;
    int64_t last_panel;
    int64_t first_row;
    int64_t last_row;
};

// What a panel looks like; several kernels may share one.
struct PanelLayout {
    int64_t (*panel_bytes)(int64_t in_features, int64_t group);
    // Packs canonical row `i` of `from` into its panel.
    void (*pack_row)(Weight& weight, const Canonical& from, int64_t i);
    // Writes output feature `row` as float32. [in_features]
    void (*read_row)(const Weight& weight, int64_t row, float* into);
};

// Constants only: what a file compiled for a newer processor would do to make one, this processor
// might not be able to.
struct WeightKernel {
    const char* name;
    const PanelLayout* layout;
    // Plans the phase that brings args.x into the form that is multiplied, in scratch; null: none.
    void (*prepare)(const LinearArgs& args, PhaseList& list);
    // Multiplies some rows, prepared in `shared`, by some panels.
    void (*multiply)(const LinearArgs& args, const Block& block, const char* shared);
};

// Returns the kernels for `kind` that the features allow, the one that is expected to be best first.
std::vector<const WeightKernel*> allowed_kernels(WeightKind kind, int64_t group, int64_t features);

// Returns a weight of zeros, or null: there is no memory.
Weight* new_weight(const WeightKernel* kernel, WeightKind kind, int64_t in_features,
                   int64_t out_features, int64_t group);

void free_weight(Weight* weight);

}  // namespace headstock
