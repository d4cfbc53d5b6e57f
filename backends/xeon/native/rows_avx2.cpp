// Kernels that work on rows one by one: norms, activation, look-ups.
#include "kernels.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

// Calls f(i) for blocks of 8 elements of a row, then rest(i) for each of what is left.
template <class Block, class Rest>
inline void for_row(int64_t size, Block block, Rest rest) {
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) block(i);
    for (; i < size; ++i) rest(i);
}

void add_row(float* residual, const float* x, int64_t size) {
    for_row(size, [&](int64_t i) {
        _mm256_storeu_ps(residual + i, _mm256_add_ps(_mm256_loadu_ps(x + i),
                                                     _mm256_loadu_ps(residual + i)));
    }, [&](int64_t i) { residual[i] += x[i]; });
}

void norm_row(const float* x, const float* weight, float* y, int64_t size, double eps) {
    __m256 squares = _mm256_setzero_ps();
    float rest = 0;
    for_row(size, [&](int64_t i) {
        const __m256 v = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }, [&](int64_t i) { rest += x[i] * x[i]; });
    const float mean = (sum8(squares) + rest) / static_cast<float>(size);
    const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(eps));
    const __m256 inverses = _mm256_set1_ps(inverse);
    for_row(size, [&](int64_t i) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverses);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
    }, [&](int64_t i) { y[i] = x[i] * inverse * weight[i]; });
}

void run_norm(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const NormArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float* x = args.x + row * args.x_stride;
        if (args.residual) {
            float* residual = args.residual + row * args.residual_stride;
            add_row(residual, x, args.size);
            x = residual;
        }
        norm_row(x, args.weight, args.y + row * args.y_stride, args.size, args.eps);
    }
}

inline __m256 silu8(__m256 x) {
    const __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), x));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

void run_activation(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ActivationArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float* gate = args.gate_up + row * args.stride;
        activate_row(gate, gate + args.size, args.y + row * args.size, args.size);
    }
}

void run_look_up(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const LookUpArgs*>(untyped);
    const Weight& weight = *args.weight;
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows), size = weight.in_features;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const int64_t id = args.ids[row] - args.first;
        float* y = args.y + row * size;
        if (id >= 0 && id < weight.out_features) weight.kernel->layout->read_row(weight, id, y);
        else std::memset(y, 0, static_cast<size_t>(size) * sizeof(float));
    }
}

}  // namespace

void activate_row(const float* gate, const float* up, float* y, int64_t size) {
    int64_t i = 0;
    for (; i + 8 <= size; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(silu8(_mm256_loadu_ps(gate + i)),
                                              _mm256_loadu_ps(up + i)));
    if (i == size) return;
    const __m256i mask = first_lanes(size - i);
    const __m256 last_gate = _mm256_maskload_ps(gate + i, mask);
    const __m256 last_up = _mm256_maskload_ps(up + i, mask);
    _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(silu8(last_gate), last_up));
}

void plan_norm(const int64_t* args, PhaseList& list) {
    list.add_rows(run_norm, args, as<NormArgs>(args).rows, kRowsPerChunk);
}

void plan_activation(const int64_t* args, PhaseList& list) {
    list.add_rows(run_activation, args, as<ActivationArgs>(args).rows, kRowsPerChunk);
}

void plan_look_up(const int64_t* args, PhaseList& list) {
    list.add_rows(run_look_up, args, as<LookUpArgs>(args).rows, kRowsPerChunk);
}

}  // namespace headstock
