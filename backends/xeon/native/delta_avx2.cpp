// Linear attention by the gated delta rule, token by token in matrices that stay in the near cache.
//
// A head's matrix is worked off in blocks of columns: a block's columns depend on no others. After
// a token has been written, the next token's key reads the same block in the same pass. What comes
// out for a token does not depend on how many tokens a step has, nor on its neighbours.
#include "delta.h"

#include "convolution.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

constexpr int64_t kTileTokens = 32;  // Whose queries and keys are made ready together.

// Convolves some features of a row's tokens, and leaves the row's last inputs.
void run_conv(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const DeltaArgs*>(untyped);
    const int64_t blocks = conv_blocks(args.num_features()), row = chunk / blocks;
    convolve(conv_row(args, args.qkv, args.qkv_stride, row), chunk % blocks,
             reinterpret_cast<float*>(worker.local));
}

// Some tokens of a row as one value head takes them.
struct Tokens {
    int64_t count;
    float* q;      // [count, key_size], scaled.
    float* k;
    float* faded;  // By channel: keys times what is kept, which read a matrix before it decays.
    float* taken;  // How much of what is under its key it replaces. [count]
    float* kept;   // What is left of the matrix at each token. [count], or [count, key_size]
};

// Floats of scratch: queries, keys, and by channel faded keys and what is kept.
int64_t tokens_scratch(const DeltaArgs& args) {
    return kTileTokens * ((args.by_channel ? 4 : 2) * args.key_size + 2);
}

Tokens tokens_at(const DeltaArgs& args, char* memory) {
    auto* at = reinterpret_cast<float*>(memory);
    const int64_t keys = kTileTokens * args.key_size;
    float *k = at + keys, *faded = args.by_channel ? k + keys : k;
    return {0, at, k, faded, faded + keys, faded + keys + kTileTokens};
}

// Copies a query or key, times `scale` over its length.
void copy_unit(const float* from, float* to, int64_t size, float scale) {
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_loadu_ps(from + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    const __m256 by = _mm256_set1_ps(scale / std::sqrt(sum8(squares) + 1e-6f));
    for (int64_t i = 0; i < size; i += 8)
        _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_loadu_ps(from + i), by));
}

// What is kept of each row of a head's matrix at a token, and the key as it reads before that.
void fade(const DeltaArgs& args, int64_t token, int64_t head, int64_t i, Tokens& tokens) {
    const int64_t size = args.key_size;
    const __m256 speed = _mm256_set1_ps(-std::exp(args.decay[head]));
    const float *a = args.a + token * args.a_stride + head * size, *bias = args.bias + head * size;
    const float* k = tokens.k + i * size;
    float *kept = tokens.kept + i * size, *faded = tokens.faded + i * size;
    for (int64_t d = 0; d < size; d += 8) {
        const __m256 x = _mm256_add_ps(_mm256_loadu_ps(a + d), _mm256_loadu_ps(bias + d));
        const __m256 left = exp8(_mm256_mul_ps(speed, softplus8(x)));
        _mm256_storeu_ps(kept + d, left);
        _mm256_storeu_ps(faded + d, _mm256_mul_ps(left, _mm256_loadu_ps(k + d)));
    }
}

void make_ready(const DeltaArgs& args, int64_t head, int64_t first, Tokens& tokens) {
    const int64_t key_head = head / (args.num_value_heads / args.num_key_heads);
    const int64_t size = args.key_size;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    const float speed = -std::exp(args.decay[head]);
    for (int64_t i = 0; i < tokens.count; ++i) {
        const int64_t token = first + i;
        const float* mixed = args.mixed + token * args.num_features() + key_head * size;
        copy_unit(mixed, tokens.q + i * size, size, scale);
        copy_unit(mixed + args.num_key_heads * size, tokens.k + i * size, size, 1.0f);
        tokens.taken[i] = sigmoid(args.b[token * args.b_stride + head]);
        if (args.by_channel) {
            fade(args, token, head, i, tokens);
            continue;
        }
        const float a = args.a[token * args.a_stride + head] + args.bias[head];
        tokens.kept[i] = std::exp(speed * softplus(a));
    }
}

// Takes tokens through 8 N columns of a matrix [key_size, value_size].
template <int N, bool kByChannel>
void run_columns(const DeltaArgs& args, const Tokens& tokens, const float* v, int64_t v_stride,
                 float* matrix, float* y, int64_t y_stride) {
    const int64_t keys = args.key_size, stride = args.value_size;
    __m256 held[N];  // What lies under the key of the token at hand.
    unrolled<N>([&](auto n) { held[n] = _mm256_setzero_ps(); });
    for (int64_t d = 0; d < keys; ++d) {
        const __m256 k = _mm256_broadcast_ss(tokens.faded + d);
        unrolled<N>([&](auto n) {
            held[n] = _mm256_fmadd_ps(k, _mm256_loadu_ps(matrix + d * stride + 8 * n), held[n]);
        });
    }
    for (int64_t t = 0; t < tokens.count; ++t) {
        const __m256 taken = _mm256_set1_ps(tokens.taken[t]);
        __m256 kept = _mm256_set1_ps(kByChannel ? 1.0f : tokens.kept[t]);
        const float *q = tokens.q + t * keys, *k = tokens.k + t * keys;
        const float* next = tokens.faded + min64(t + 1, tokens.count - 1) * keys;
        __m256 written[N], read[N];
        unrolled<N>([&](auto n) {
            const __m256 value = _mm256_loadu_ps(v + t * v_stride + 8 * n);
            written[n] = _mm256_mul_ps(_mm256_fnmadd_ps(kept, held[n], value), taken);
            held[n] = read[n] = _mm256_setzero_ps();
        });
        for (int64_t d = 0; d < keys; ++d) {
            const __m256 kd = _mm256_broadcast_ss(k + d), qd = _mm256_broadcast_ss(q + d);
            const __m256 nd = _mm256_broadcast_ss(next + d);
            if constexpr (kByChannel) kept = _mm256_broadcast_ss(tokens.kept + t * keys + d);
            unrolled<N>([&](auto n) {
                float* at = matrix + d * stride + 8 * n;
                const __m256 old = _mm256_mul_ps(kept, _mm256_loadu_ps(at));
                const __m256 now = _mm256_fmadd_ps(kd, written[n], old);
                _mm256_storeu_ps(at, now);
                read[n] = _mm256_fmadd_ps(qd, now, read[n]);
                held[n] = _mm256_fmadd_ps(nd, now, held[n]);
            });
        }
        unrolled<N>([&](auto n) { _mm256_storeu_ps(y + t * y_stride + 8 * n, read[n]); });
    }
}

// Takes tokens through a matrix, as many columns at once as stay in registers.
template <bool kByChannel>
void run_matrix(const DeltaArgs& args, const Tokens& tokens, const float* v, int64_t v_stride,
                float* matrix, float* y, int64_t y_stride) {
    const int64_t values = args.value_size;
    int64_t c = 0;
    for (; c + 24 <= values; c += 24)
        run_columns<3, kByChannel>(args, tokens, v + c, v_stride, matrix + c, y + c, y_stride);
    for (; c + 16 <= values; c += 16)
        run_columns<2, kByChannel>(args, tokens, v + c, v_stride, matrix + c, y + c, y_stride);
    for (; c < values; c += 8)
        run_columns<1, kByChannel>(args, tokens, v + c, v_stride, matrix + c, y + c, y_stride);
}

// Takes a row through one value head's matrix.
void run_head(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const DeltaArgs*>(untyped);
    const int64_t row = chunk / args.num_value_heads, head = chunk % args.num_value_heads;
    const int64_t size = args.key_size * args.value_size, values = args.value_size;
    const int64_t place = args.num_inputs() + head * size;
    float* matrix = args.left(row) + place;
    const auto bytes = static_cast<size_t>(size) * sizeof(float);
    if (args.is_new(row)) std::memset(matrix, 0, bytes);
    else if (args.left(row) != args.found(row)) std::memcpy(matrix, args.found(row) + place, bytes);
    Tokens tokens = tokens_at(args, worker.local);
    const int64_t end = args.query_starts[row + 1], y_stride = args.num_value_heads * values;
    const int64_t first_value = 2 * args.num_key_heads * args.key_size + head * values;
    for (int64_t first = args.query_starts[row]; first < end; first += kTileTokens) {
        tokens.count = min64(kTileTokens, end - first);
        make_ready(args, head, first, tokens);
        const int64_t v_stride = args.num_features();
        const float* v = args.mixed + first * v_stride + first_value;
        float* y = args.y + first * y_stride + head * values;
        if (args.by_channel) run_matrix<true>(args, tokens, v, v_stride, matrix, y, y_stride);
        else run_matrix<false>(args, tokens, v, v_stride, matrix, y, y_stride);
    }
}

void run_gated_norm(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const GatedNormArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows), size = args.size;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float* x = args.x + row * size;
        const float* gate =
            args.gate + row / args.heads * args.gate_stride + row % args.heads * size;
        float squares = 0;
        for (int64_t i = 0; i < size; ++i) squares += x[i] * x[i];
        const float mean = squares / static_cast<float>(size);
        const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(args.eps));
        float* y = args.y + row * size;
        for (int64_t i = 0; i < size; ++i) y[i] = x[i] * inverse * args.weight[i] * silu(gate[i]);
    }
}

void run_gate(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const GateArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float *x = args.x + row * args.x_stride, *gate = args.gate + row * args.gate_stride;
        float* y = args.y + row * args.size;
        for (int64_t i = 0; i < args.size; ++i) y[i] = x[i] * sigmoid(gate[i]);
    }
}

void run_gate_heads(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const GateHeadsArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    const int64_t size = args.size / args.heads;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float *x = args.x + row * args.x_stride, *gate = args.gate + row * args.gate_stride;
        float* y = args.y + row * args.size;
        for (int64_t head = 0; head < args.heads; ++head) {
            const float factor = args.is_softplus ? softplus(gate[head]) : sigmoid(gate[head]);
            for (int64_t i = head * size; i < (head + 1) * size; ++i) y[i] = x[i] * factor;
        }
    }
}

}  // namespace

void plan_delta(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<DeltaArgs>(untyped);
    const int64_t conv = conv_scratch(args.kernel_size);
    list.need_local(static_cast<size_t>(max64(conv, tokens_scratch(args))) * sizeof(float));
    list.add(run_conv, untyped, args.rows * conv_blocks(args.num_features()));
    list.add(run_head, untyped, args.rows * args.num_value_heads);
}

void plan_gated_norm(const int64_t* args, PhaseList& list) {
    list.add_rows(run_gated_norm, args, as<GatedNormArgs>(args).rows, kRowsPerChunk);
}

void plan_gate(const int64_t* args, PhaseList& list) {
    list.add_rows(run_gate, args, as<GateArgs>(args).rows, kRowsPerChunk);
}

void plan_gate_heads(const int64_t* args, PhaseList& list) {
    list.add_rows(run_gate_heads, args, as<GateHeadsArgs>(args).rows, kRowsPerChunk);
}

}  // namespace headstock
