// Hyper-connections: what a layer takes from several streams, and what it gives back to them.
#include "hyper.h"

#include "row_blocks.h"

namespace headstock {
namespace {

// The sum of products, of any number of features.
float dot(const float* x, const float* y, int64_t size) {
    __m256 sum[4];
    unrolled<4>([&](auto i) { sum[i] = _mm256_setzero_ps(); });
    int64_t d = 0;
    for (; d + 32 <= size; d += 32)
        unrolled<4>([&](auto i) {
            sum[i] = _mm256_fmadd_ps(_mm256_loadu_ps(x + d + 8 * i), _mm256_loadu_ps(y + d + 8 * i),
                                     sum[i]);
        });
    for (; d < size; d += 8) {
        const __m256i inside = first_lanes(min64(8, size - d));
        sum[0] = _mm256_fmadd_ps(_mm256_maskload_ps(x + d, inside),
                                 _mm256_maskload_ps(y + d, inside), sum[0]);
    }
    return sum8(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// y += weight * x
void add_weighed(float* y, const float* x, float weight, int64_t size) {
    for (int64_t d = 0; d < size; ++d) y[d] = std::fma(weight, x[d], y[d]);
}

// Divides rows, or columns, of an N x N matrix by their sums.
void level(float* matrix, int64_t count, bool is_by_row, float eps) {
    const int64_t step = is_by_row ? 1 : count, next = is_by_row ? count : 1;
    for (int64_t i = 0; i < count; ++i) {
        float* line = matrix + i * next;
        float sum = 0;
        for (int64_t j = 0; j < count; ++j) sum += line[j * step];
        for (int64_t j = 0; j < count; ++j) line[j * step] /= sum + eps;
    }
}

// Makes weights, whose rows and columns sum to 1, of N x N numbers.
void make_mixing(float* matrix, int64_t count, float eps, int64_t num_rounds) {
    for (int64_t i = 0; i < count; ++i) {
        float* row = matrix + i * count;
        float largest = row[0], sum = 0;
        for (int64_t j = 1; j < count; ++j) largest = row[j] > largest ? row[j] : largest;
        for (int64_t j = 0; j < count; ++j) sum += row[j] = std::exp(row[j] - largest);
        for (int64_t j = 0; j < count; ++j) row[j] = row[j] / sum + eps;
    }
    level(matrix, count, false, eps);
    for (int64_t i = 1; i < num_rounds; ++i) {
        level(matrix, count, true, eps);
        level(matrix, count, false, eps);
    }
}

int64_t num_weights(const CollapseArgs& args) {
    return args.streams * (args.write ? 2 + args.streams : 1);
}

// Makes a row's weights of the products of its streams, times what normalises them.
void collapse_row(const CollapseArgs& args, int64_t row, const float* made, float inverse) {
    const int64_t count = args.streams, size = args.size;
    const float* x = args.x + row * args.x_stride;
    const auto eps = static_cast<float>(args.eps);
    float* y = args.y + row * size;
    const auto weight = [&](int64_t i, int64_t kind) {
        return made[i] * inverse * args.scale[kind] + args.base[i];
    };
    std::memset(y, 0, static_cast<size_t>(size) * sizeof(float));
    for (int64_t n = 0; n < count; ++n)
        add_weighed(y, x + n * size, sigmoid(weight(n, 0)) + eps, size);
    if (!args.write) return;
    for (int64_t n = 0; n < count; ++n)
        args.write[row * count + n] = 2 * sigmoid(weight(count + n, 1));
    float* mixed = args.mixed + row * count * count;
    for (int64_t i = 0; i < count * count; ++i) mixed[i] = weight(2 * count + i, 2);
    make_mixing(mixed, count, eps, args.num_rounds);
}

void run_collapse(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const CollapseArgs*>(untyped);
    const int64_t first = chunk * kRowsPerChunk, last = min64(first + kRowsPerChunk, args.rows);
    const int64_t width = args.streams * args.size, weights = num_weights(args);
    auto* made = reinterpret_cast<float*>(worker.local);
    // A row of the matrix is read once for all rows of the chunk.
    for (int64_t i = 0; i < weights; ++i)
        for (int64_t row = first; row < last; ++row)
            made[(row - first) * weights + i] =
                dot(args.x + row * args.x_stride, args.mix + i * width, width);
    for (int64_t row = first; row < last; ++row) {
        const float* x = args.x + row * args.x_stride;
        const float mean = dot(x, x, width) / static_cast<float>(width);
        const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(args.norm_eps));
        collapse_row(args, row, made + (row - first) * weights, inverse);
    }
}

void run_expand(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ExpandArgs*>(untyped);
    const int64_t row = chunk / args.streams, to = chunk % args.streams;
    const int64_t count = args.streams, size = args.size;
    const float* x = args.x + row * args.x_stride;
    const float* mixed = args.mixed + row * count * count + to;
    float* y = args.y + (row * count + to) * size;
    std::memset(y, 0, static_cast<size_t>(size) * sizeof(float));
    for (int64_t from = 0; from < count; ++from)
        add_weighed(y, x + from * size, mixed[from * count], size);
    add_weighed(y, args.other + row * args.other_stride, args.write[row * count + to], size);
}

constexpr int64_t kOutputs = 32;  // Of a group, that a chunk makes.

int64_t num_blocks(int64_t count, int64_t of_block) { return (count + of_block - 1) / of_block; }

void run_groups(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const GroupsArgs*>(untyped);
    const int64_t row_blocks = num_blocks(args.rows, kMostRows);
    const int64_t out_blocks = num_blocks(args.out_features, kOutputs);
    const int64_t begin = chunk % row_blocks * kMostRows, place = chunk / row_blocks;
    const int64_t group = place / out_blocks, first = place % out_blocks * kOutputs;
    const int64_t rows = min64(kMostRows, args.rows - begin);
    const float* x[kMostRows];
    float* y[kMostRows];
    for (int64_t r = 0; r < rows; ++r) {
        x[r] = args.x + (begin + r) * args.x_stride + group * args.in_features;
        y[r] = args.y + ((begin + r) * args.groups + group) * args.out_features;
    }
    const float* weight =
        args.weight + (group * args.out_features + first) * args.in_features;
    multiply_rows<Float32Rows>(x, rows, weight, args.in_features, args.in_features,
                               min64(kOutputs, args.out_features - first), y, first);
}

}  // namespace

void plan_collapse(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<CollapseArgs>(untyped);
    list.need_local(static_cast<size_t>(kRowsPerChunk * num_weights(args)) * sizeof(float));
    list.add_rows(run_collapse, untyped, args.rows, kRowsPerChunk);
}

void plan_expand(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<ExpandArgs>(untyped);
    list.add(run_expand, untyped, args.rows * args.streams);
}

void plan_groups(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<GroupsArgs>(untyped);
    list.add(run_groups, untyped,
             args.groups * num_blocks(args.out_features, kOutputs) *
                 num_blocks(args.rows, kMostRows));
}

}  // namespace headstock
