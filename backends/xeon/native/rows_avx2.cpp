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

inline __m256 all(double value) { return _mm256_set1_ps(static_cast<float>(value)); }

// x / (1 + e^-z): x where z is large, 0 where it is small.
inline __m256 times_sigmoid(__m256 x, __m256 z) {
    const __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), z));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

// The error function, to some 2e-7. Source: Abramowitz and Stegun, 7.1.26.
inline __m256 erf8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), magnitude = abs8(x);
    const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(magnitude, all(0.3275911), one));
    __m256 p = all(1.061405429);
    p = _mm256_fmadd_ps(p, t, all(-1.453152027));
    p = _mm256_fmadd_ps(p, t, all(1.421413741));
    p = _mm256_fmadd_ps(p, t, all(-0.284496736));
    p = _mm256_fmadd_ps(p, t, all(0.254829592));
    const __m256 minus_square = _mm256_sub_ps(_mm256_setzero_ps(), _mm256_mul_ps(x, x));
    const __m256 tail = _mm256_mul_ps(_mm256_mul_ps(p, t), exp8(minus_square));
    const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
    return _mm256_or_ps(_mm256_sub_ps(one, tail), sign);
}

struct Silu {
    __m256 operator()(__m256 gate, __m256 up) const {
        return _mm256_mul_ps(times_sigmoid(gate, gate), up);
    }
};

// 0.5 x (1 + tanh u) is x sigmoid(2 u).
struct GeluTanh {
    __m256 operator()(__m256 gate, __m256 up) const {
        const __m256 square = _mm256_mul_ps(gate, gate);
        const __m256 factor = _mm256_fmadd_ps(square, all(2 * 0.7978845608028654 * 0.044715),
                                              all(2 * 0.7978845608028654));
        return _mm256_mul_ps(times_sigmoid(gate, _mm256_mul_ps(gate, factor)), up);
    }
};

struct Gelu {
    __m256 operator()(__m256 gate, __m256 up) const {
        const __m256 share = erf8(_mm256_mul_ps(gate, all(0.7071067811865476)));
        const __m256 half = _mm256_mul_ps(gate, all(0.5));
        return _mm256_mul_ps(_mm256_fmadd_ps(half, share, half), up);
    }
};

struct Relu2 {
    __m256 operator()(__m256 gate, __m256 up) const {
        // A maximum gives its second operand where one is not a number: so zero comes first.
        const __m256 above = _mm256_max_ps(_mm256_setzero_ps(), gate);
        return _mm256_mul_ps(_mm256_mul_ps(above, above), up);
    }
};

struct ClippedSwiglu {
    __m256 limit, alpha;
    __m256 operator()(__m256 gate, __m256 up) const {
        const __m256 lowest = _mm256_sub_ps(_mm256_setzero_ps(), limit);
        gate = _mm256_min_ps(limit, gate);
        up = _mm256_max_ps(lowest, _mm256_min_ps(limit, up));
        const __m256 share = times_sigmoid(gate, _mm256_mul_ps(alpha, gate));
        return _mm256_mul_ps(_mm256_add_ps(up, _mm256_set1_ps(1.0f)), share);
    }
};

struct BoundedSwiglu {
    __m256 limit;
    __m256 operator()(__m256 gate, __m256 up) const {
        const __m256 lowest = _mm256_sub_ps(_mm256_setzero_ps(), limit);
        up = _mm256_max_ps(lowest, _mm256_min_ps(limit, up));
        return _mm256_mul_ps(_mm256_min_ps(limit, times_sigmoid(gate, gate)), up);
    }
};

struct LimitedSwiglu {
    __m256 limit;
    __m256 operator()(__m256 gate, __m256 up) const {
        const __m256 lowest = _mm256_sub_ps(_mm256_setzero_ps(), limit);
        gate = _mm256_min_ps(limit, gate);
        up = _mm256_max_ps(lowest, _mm256_min_ps(limit, up));
        return _mm256_mul_ps(times_sigmoid(gate, gate), up);
    }
};

struct Xielu {
    __m256 alpha_p, alpha_n, beta, eps;
    __m256 operator()(__m256 gate, __m256 up) const {
        const __m256 linear = _mm256_mul_ps(beta, gate);
        const __m256 above = _mm256_fmadd_ps(_mm256_mul_ps(alpha_p, gate), gate, linear);
        const __m256 small = _mm256_min_ps(eps, gate);
        const __m256 grown = _mm256_sub_ps(exp8(small), _mm256_set1_ps(1.0f));
        const __m256 below = _mm256_fmadd_ps(_mm256_sub_ps(grown, gate), alpha_n, linear);
        const __m256 is_above = _mm256_cmp_ps(gate, _mm256_setzero_ps(), _CMP_GT_OQ);
        return _mm256_mul_ps(_mm256_blendv_ps(below, above, is_above), up);
    }
};

// Without a gate: up stands for ones.
template <class Join>
inline void apply_row(const Join& join, const float* x, float* y, int64_t size) {
    const __m256 one = _mm256_set1_ps(1.0f);
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) _mm256_storeu_ps(y + i, join(_mm256_loadu_ps(x + i), one));
    if (i == size) return;
    const __m256i mask = first_lanes(size - i);
    _mm256_maskstore_ps(y + i, mask, join(_mm256_maskload_ps(x + i, mask), one));
}

template <class Join>
inline void join_row(const Join& join, const float* gate, const float* up, float* y, int64_t size) {
    if (!up) return apply_row(join, gate, y, size);
    int64_t i = 0;
    for (; i + 8 <= size; i += 8)
        _mm256_storeu_ps(y + i, join(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == size) return;
    const __m256i mask = first_lanes(size - i);
    const __m256 last_gate = _mm256_maskload_ps(gate + i, mask);
    const __m256 last_up = _mm256_maskload_ps(up + i, mask);
    _mm256_maskstore_ps(y + i, mask, join(last_gate, last_up));
}

void run_activation(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ActivationArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        activate_row(args.activation, args.gate + row * args.gate_stride,
                     args.up + row * args.up_stride, args.y + row * args.size, args.size);
    }
}

void scale_row(float* y, float factor, int64_t size) {
    for (int64_t i = 0; i < size; ++i) y[i] *= factor;
}

// Logits are few long rows: chunks of them.
constexpr int64_t kCapChunk = 8192;

void run_features(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const FeaturesArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows), size = args.size;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float* x = args.x + row * args.x_stride;
        float* y = args.y + row * size;
        float factor = static_cast<float>(args.factor);
        if (args.table) factor *= args.table[args.positions ? args.positions[row] : row];
        for (int64_t i = 0; i < size; ++i) y[i] = x[i] * factor;
        if (args.weight)
            for (int64_t i = 0; i < size; ++i) y[i] *= args.weight[i];
        if (args.other) add_row(y, args.other + row * args.other_stride, size);
    }
}

// Bounds are kept by what is not a number, as comparisons with it are false.
void run_columns(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ColumnsArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows), size = args.size;
    const float least = args.bounds ? args.bounds[0] : -INFINITY;
    const float largest = args.bounds ? args.bounds[1] : INFINITY;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float* x = args.x + row * args.x_stride;
        float* y = args.y + row * size;
        if (args.order)
            for (int64_t i = 0; i < size; ++i) y[i] = x[args.order[i]];
        else
            std::memcpy(y, x, static_cast<size_t>(size) * sizeof(float));
        for (int64_t i = 0; args.bounds && i < size; ++i) {
            const float v = y[i] < least ? least : y[i];
            y[i] = v > largest ? largest : v;
        }
    }
}

void run_cap(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const CapArgs*>(untyped);
    const int64_t per_row = (args.size + kCapChunk - 1) / kCapChunk;
    const int64_t begin = chunk % per_row * kCapChunk, row = chunk / per_row;
    const int64_t count = min64(kCapChunk, args.size - begin);
    const float* x = args.x + row * args.stride + begin;
    float* y = args.y + row * args.size + begin;
    const __m256 cap = all(args.cap), inverse = all(1.0 / args.cap);
    for (int64_t i = 0; i < count; i += 8) {
        const __m256i mask = first_lanes(min64(8, count - i));
        const __m256 share = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), inverse);
        _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(cap, tanh8(share)));
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
        if (args.factor != 1.0) scale_row(y, static_cast<float>(args.factor), size);
    }
}

}  // namespace

void activate_row(const Activation& activation, const float* gate, const float* up, float* y,
                  int64_t size) {
    const double* p = activation.parameters;
    switch (static_cast<ActivationKind>(activation.kind)) {
        case ActivationKind::kSilu: join_row(Silu{}, gate, up, y, size); break;
        case ActivationKind::kGeluTanh: join_row(GeluTanh{}, gate, up, y, size); break;
        case ActivationKind::kGelu: join_row(Gelu{}, gate, up, y, size); break;
        case ActivationKind::kRelu2: join_row(Relu2{}, gate, up, y, size); break;
        case ActivationKind::kClippedSwiglu:
            join_row(ClippedSwiglu{all(p[0]), all(p[1])}, gate, up, y, size);
            break;
        case ActivationKind::kBoundedSwiglu:
            join_row(BoundedSwiglu{all(p[0])}, gate, up, y, size);
            break;
        case ActivationKind::kLimitedSwiglu:
            join_row(LimitedSwiglu{all(p[0])}, gate, up, y, size);
            break;
        case ActivationKind::kXielu:
            join_row(Xielu{all(p[0]), all(p[1]), all(p[2]), all(p[3])}, gate, up, y, size);
            break;
    }
}

void plan_norm(const int64_t* args, PhaseList& list) {
    list.add_rows(run_norm, args, as<NormArgs>(args).rows, kRowsPerChunk);
}

void plan_activation(const int64_t* args, PhaseList& list) {
    list.add_rows(run_activation, args, as<ActivationArgs>(args).rows, kRowsPerChunk);
}

void plan_features(const int64_t* args, PhaseList& list) {
    list.add_rows(run_features, args, as<FeaturesArgs>(args).rows, kRowsPerChunk);
}

void plan_columns(const int64_t* args, PhaseList& list) {
    list.add_rows(run_columns, args, as<ColumnsArgs>(args).rows, kRowsPerChunk);
}

void plan_cap(const int64_t* args, PhaseList& list) {
    const auto& cap = as<CapArgs>(args);
    list.add(run_cap, args, cap.rows * ((cap.size + kCapChunk - 1) / kCapChunk));
}

void plan_look_up(const int64_t* args, PhaseList& list) {
    list.add_rows(run_look_up, args, as<LookUpArgs>(args).rows, kRowsPerChunk);
}

}  // namespace headstock
