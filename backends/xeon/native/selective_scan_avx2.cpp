// State spaces of Mamba 1, token by token. A feature's state stays in registers or the near cache.
//
// What comes out for a token does not depend on how many tokens a step has, nor on its neighbours.
#include "convolution.h"
#include "states.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

constexpr int64_t kFeatures = 32;  // That a worker takes through a row's tokens.

int64_t blocks_of(int64_t size) { return (size + kFeatures - 1) / kFeatures; }

// Takes one token's feature into its state [N], and returns what is read of it.
float take(const SelectiveScanArgs& args, const float* decay, float step, float x, const float* bc,
           float* state) {
    const int64_t count = args.state_size;
    const __m256 minus_step = _mm256_set1_ps(-step), taken = _mm256_set1_ps(step * x);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t n = 0; n < count; n += 8) {
        const __m256 speed = exp8(_mm256_loadu_ps(decay + n));
        const __m256 kept = exp8(_mm256_mul_ps(speed, minus_step));
        const __m256 in = _mm256_mul_ps(taken, _mm256_loadu_ps(bc + n));
        const __m256 now = _mm256_fmadd_ps(_mm256_loadu_ps(state + n), kept, in);
        _mm256_storeu_ps(state + n, now);
        sum = _mm256_fmadd_ps(now, _mm256_loadu_ps(bc + count + n), sum);
    }
    return sum8(sum);
}

void run_scan(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const SelectiveScanArgs*>(untyped);
    const int64_t blocks = blocks_of(args.size), row = chunk / blocks, states = args.state_size;
    const int64_t begin = chunk % blocks * kFeatures, end = min64(begin + kFeatures, args.size);
    const int64_t first = args.query_starts[row], last = args.query_starts[row + 1];
    const int32_t* entry = args.page_table + row * args.table_stride;
    const int64_t page = args.size * states, place = begin * states;
    float* state = args.pages + entry[1] * page + place;
    const auto bytes = static_cast<size_t>((end - begin) * states) * sizeof(float);
    if (args.kv_lengths[row] <= last - first) std::memset(state, 0, bytes);
    else if (entry[0] != entry[1])
        std::memcpy(state, args.pages + entry[0] * page + place, bytes);
    for (int64_t t = first; t < last; ++t) {
        const float *x = args.x + t * args.x_stride, *dt = args.dt + t * args.dt_stride;
        const float* bc = args.bc + t * args.bc_stride;
        float* y = args.y + t * args.size;
        for (int64_t c = begin; c < end; ++c) {
            const float* decay = args.decay + c * states;
            float* own = state + (c - begin) * states;
            y[c] = take(args, decay, softplus(dt[c]), x[c], bc, own) + x[c] * args.skip[c];
        }
    }
}

}  // namespace

void plan_selective_scan(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<SelectiveScanArgs>(untyped);
    list.add(run_scan, untyped, args.rows * blocks_of(args.size));
}

}  // namespace headstock
