// State spaces of Mamba 2, token by token in matrices that stay in the near cache, and their gates.
//
// A head's matrix is worked off in blocks of columns: a block's columns depend on no others. What
// comes out for a token does not depend on how many tokens a step has, nor on its neighbours.
#include "convolution.h"
#include "delta.h"
#include "states.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

constexpr int64_t kTileTokens = 32;  // Whose decays are made ready together.

void run_conv(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const Mamba2Args*>(untyped);
    const int64_t blocks = conv_blocks(args.num_features()), row = chunk / blocks;
    ConvRow conv = conv_row(args, args.xbc, args.xbc_stride, row);
    conv.bias = args.conv_bias;
    convolve(conv, chunk % blocks, reinterpret_cast<float*>(worker.local));
}

// Some tokens of a row as one head takes them.
struct Tokens {
    int64_t count;
    float kept[kTileTokens];  // What is left of the matrix at each token.
    float step[kTileTokens];  // What its x is multiplied by.
    const float* b;           // [count, state_size], from token to token as far as C features.
    const float* c;
};

// Takes tokens through 8 N columns of a matrix [state_size, head_dim].
template <int N>
void run_columns(const Mamba2Args& args, const Tokens& tokens, float skip, const float* x,
                 float* matrix, float* y, int64_t y_stride) {
    const int64_t states = args.state_size, stride = args.head_dim, line = args.num_features();
    for (int64_t t = 0; t < tokens.count; ++t) {
        const __m256 kept = _mm256_set1_ps(tokens.kept[t]), by = _mm256_set1_ps(tokens.step[t]);
        const float *b = tokens.b + t * line, *c = tokens.c + t * line;
        __m256 written[N], read[N];
        unrolled<N>([&](auto n) {
            const __m256 value = _mm256_loadu_ps(x + t * line + 8 * n);
            written[n] = _mm256_mul_ps(value, by);
            read[n] = _mm256_mul_ps(value, _mm256_set1_ps(skip));
        });
        for (int64_t d = 0; d < states; ++d) {
            const __m256 bd = _mm256_broadcast_ss(b + d), cd = _mm256_broadcast_ss(c + d);
            unrolled<N>([&](auto n) {
                float* at = matrix + d * stride + 8 * n;
                const __m256 old = _mm256_mul_ps(kept, _mm256_loadu_ps(at));
                const __m256 now = _mm256_fmadd_ps(bd, written[n], old);
                _mm256_storeu_ps(at, now);
                read[n] = _mm256_fmadd_ps(cd, now, read[n]);
            });
        }
        unrolled<N>([&](auto n) { _mm256_storeu_ps(y + t * y_stride + 8 * n, read[n]); });
    }
}

void make_ready(const Mamba2Args& args, int64_t head, int64_t first, Tokens& tokens) {
    const float speed = -std::exp(args.decay[head]);
    const auto least = static_cast<float>(args.least_step);
    const auto largest = static_cast<float>(args.largest_step);
    for (int64_t i = 0; i < tokens.count; ++i) {
        const float dt = args.dt[(first + i) * args.dt_stride + head] + args.step_bias[head];
        const float step = std::fmin(std::fmax(softplus(dt), least), largest);
        tokens.step[i] = step;
        tokens.kept[i] = std::exp(speed * step);
    }
    const int64_t group = head / (args.num_heads / args.num_groups);
    tokens.b = args.mixed + first * args.num_features() + args.num_heads * args.head_dim +
               group * args.state_size;
    tokens.c = tokens.b + args.num_groups * args.state_size;
}

// Takes a row through one head's matrix.
void run_head(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const Mamba2Args*>(untyped);
    const int64_t row = chunk / args.num_heads, head = chunk % args.num_heads;
    const int64_t columns = args.head_dim, size = args.state_size * columns;
    const int64_t place = args.num_inputs() + head * size;
    float* matrix = args.left(row) + place;
    const auto bytes = static_cast<size_t>(size) * sizeof(float);
    if (args.is_new(row)) std::memset(matrix, 0, bytes);
    else if (args.left(row) != args.found(row)) std::memcpy(matrix, args.found(row) + place, bytes);
    Tokens tokens;
    const int64_t end = args.query_starts[row + 1], y_stride = args.num_heads * columns;
    for (int64_t first = args.query_starts[row]; first < end; first += kTileTokens) {
        tokens.count = min64(kTileTokens, end - first);
        make_ready(args, head, first, tokens);
        const float* x = args.mixed + first * args.num_features() + head * columns;
        float* y = args.y + first * y_stride + head * columns;
        const float skip = args.skip[head];
        int64_t c = 0;
        for (; c + 32 <= columns; c += 32)
            run_columns<4>(args, tokens, skip, x + c, matrix + c, y + c, y_stride);
        for (; c < columns; c += 8)
            run_columns<1>(args, tokens, skip, x + c, matrix + c, y + c, y_stride);
    }
}

void run_group_norm(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const GroupNormArgs*>(untyped);
    const int64_t all = args.rows * args.groups, size = args.size;
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, all);
    for (int64_t at = chunk * kRowsPerChunk; at < last; ++at) {
        const int64_t row = at / args.groups, begin = at % args.groups * size;
        const float* x = args.x + row * args.x_stride + begin;
        const float* gate = args.gate + row * args.gate_stride + begin;
        const float* weight = args.weight + begin;
        float* y = args.y + row * args.groups * size + begin;
        float squares = 0;
        for (int64_t i = 0; i < size; ++i) {
            y[i] = args.is_gated_first ? x[i] * silu(gate[i]) : x[i];
            squares += y[i] * y[i];
        }
        const float mean = squares / static_cast<float>(size);
        const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(args.eps));
        for (int64_t i = 0; i < size; ++i) y[i] *= inverse * weight[i];
        if (!args.is_gated_first)
            for (int64_t i = 0; i < size; ++i) y[i] *= silu(gate[i]);
    }
}

void run_gate(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const GateArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float *x = args.x + row * args.x_stride, *gate = args.gate + row * args.gate_stride;
        float* y = args.y + row * args.size;
        for (int64_t i = 0; i < args.size; ++i) y[i] = x[i] * silu(gate[i]);
    }
}

}  // namespace

void plan_mamba2(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<Mamba2Args>(untyped);
    list.need_local(static_cast<size_t>(conv_scratch(args.kernel_size)) * sizeof(float));
    list.add(run_conv, untyped, args.rows * conv_blocks(args.num_features()));
    list.add(run_head, untyped, args.rows * args.num_heads);
}

void plan_gated_group_norm(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<GroupNormArgs>(untyped);
    const int64_t chunks = (args.rows * args.groups + kRowsPerChunk - 1) / kRowsPerChunk;
    list.add(run_group_norm, untyped, chunks);
}

void plan_gate_by_silu(const int64_t* args, PhaseList& list) {
    list.add_rows(run_gate, args, as<GateArgs>(args).rows, kRowsPerChunk);
}

}  // namespace headstock
