// The op add_lora: what each token's adapter adds to a product, in float32.
//
// Tokens go one by one, each in an order of sums of its own: no neighbour changes what it gets. Some
// tokens share a chunk, so that the adapter's rows are still in the caches for the next one.
#include "kernels.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

constexpr int64_t kTokens = 16;    // Of a chunk.
constexpr int64_t kRows = 8;       // Of the first matrix, at once.
constexpr int64_t kOutputs = 128;  // Of a chunk.

int64_t inner_size(const LoraArgs& args) { return args.parts * args.rank; }

int64_t chunks_of(int64_t size, int64_t unit) { return (size + unit - 1) / unit; }

// inner[k] = x . down[k] for kRows rows.
void shrink_rows(const float* x, const float* down, int64_t size, float* inner) {
    __m256 sums[kRows];
    unrolled<kRows>([&](auto k) { sums[k] = _mm256_setzero_ps(); });
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        unrolled<kRows>([&](auto k) {
            sums[k] = _mm256_fmadd_ps(v, _mm256_loadu_ps(down + k * size + i), sums[k]);
        });
    }
    unrolled<kRows>([&](auto k) {
        float sum = sum8(sums[k]);
        for (int64_t j = i; j < size; ++j) sum += x[j] * down[k * size + j];
        inner[k] = sum;
    });
}

void run_shrink(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const LoraArgs*>(untyped);
    const int64_t inner = inner_size(args), num_blocks = inner / kRows;
    const int64_t k = chunk % num_blocks * kRows, first = chunk / num_blocks * kTokens;
    auto* into = reinterpret_cast<float*>(worker.shared);
    for (int64_t token = first; token < min64(first + kTokens, args.tokens); ++token) {
        const int64_t place = args.adapters[token];
        if (place == 0) continue;
        const float* down = args.down + ((place - 1) * inner + k) * args.in_features;
        shrink_rows(args.x + token * args.x_stride, down, args.in_features,
                    into + token * inner + k);
    }
}

// x . up of one output; the rank is a multiple of 8.
float expand_one(const float* inner, const float* up, int64_t rank) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t r = 0; r < rank; r += 8)
        sum = _mm256_fmadd_ps(_mm256_loadu_ps(inner + r), _mm256_loadu_ps(up + r), sum);
    return sum8(sum);
}

// The end of the part that an output belongs to; `part` becomes its number.
int64_t end_of_part(const LoraArgs& args, int64_t output, int64_t& part) {
    while (part + 1 < args.parts && args.starts[part + 1] <= output) ++part;
    return part + 1 < args.parts ? args.starts[part + 1] : args.out_features;
}

void run_expand(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const LoraArgs*>(untyped);
    const int64_t inner = inner_size(args), num_blocks = chunks_of(args.out_features, kOutputs);
    const int64_t begin = chunk % num_blocks * kOutputs, first = chunk / num_blocks * kTokens;
    const int64_t end = min64(begin + kOutputs, args.out_features);
    const auto* from = reinterpret_cast<const float*>(worker.shared);
    for (int64_t token = first; token < min64(first + kTokens, args.tokens); ++token) {
        const int64_t place = args.adapters[token];
        if (place == 0) continue;
        const float* up = args.up + (place - 1) * args.out_features * args.rank;
        float* out = args.out + token * args.out_stride;
        for (int64_t o = begin, part = 0; o < end;) {
            const int64_t last = min64(end_of_part(args, o, part), end);
            const float* inner_part = from + token * inner + part * args.rank;
            for (; o < last; ++o) out[o] += expand_one(inner_part, up + o * args.rank, args.rank);
        }
    }
}

}  // namespace

void plan_lora(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<LoraArgs>(untyped);
    const int64_t inner = inner_size(args), blocks = chunks_of(args.tokens, kTokens);
    list.need_shared(static_cast<size_t>(args.tokens * inner) * sizeof(float));
    list.add(run_shrink, untyped, blocks * (inner / kRows));
    list.add(run_expand, untyped, blocks * chunks_of(args.out_features, kOutputs));
}

}  // namespace headstock
