// Kernels that mask and select, and norms over all heads.
#include "choices.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

// Elements of a row that one chunk takes: logits are long, and few rows have them.
constexpr int64_t kMaskChunk = 8192;

float sum_of_squares(const float* x, int64_t size) {
    __m256 squares = _mm256_setzero_ps();
    for (int64_t i = 0; i < size; i += 8) {
        const __m256 v = _mm256_maskload_ps(x + i, first_lanes(min64(8, size - i)));
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    return sum8(squares);
}

void run_squares(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const SquaresArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float* x = args.x + row * args.stride;
        args.sums[2 * row] = sum_of_squares(x, args.q_size);
        args.sums[2 * row + 1] = sum_of_squares(x + args.q_size, args.k_size);
    }
}

void scale_by(const float* x, const float* weight, float mean, float eps, float* y, int64_t size) {
    const float inverse = 1.0f / std::sqrt(mean + eps);
    for (int64_t i = 0; i < size; ++i) y[i] = x[i] * inverse * weight[i];
}

void run_wide_norm(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const WideNormArgs*>(untyped);
    const auto eps = static_cast<float>(args.eps);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    const int64_t values = args.q_size + args.k_size;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        const float *x = args.x + row * args.stride, *squares = args.squares + 2 * row;
        float* y = args.y + row * args.size;
        scale_by(x, args.q_norm, squares[0] / static_cast<float>(args.q_width), eps, y,
                 args.q_size);
        scale_by(x + args.q_size, args.k_norm, squares[1] / static_cast<float>(args.k_width), eps,
                 y + args.q_size, args.k_size);
        std::memcpy(y + values, x + values,
                    static_cast<size_t>(args.size - values) * sizeof(float));
    }
}

void run_mask(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const MaskArgs*>(untyped);
    const int64_t per_row = (args.size + kMaskChunk - 1) / kMaskChunk;
    const int64_t row = chunk / per_row, begin = chunk % per_row * kMaskChunk;
    const int64_t end = min64(begin + kMaskChunk, args.size);
    const float* x = args.x + row * args.stride;
    const uint32_t* words = args.words + row * args.words_stride;
    float* y = args.y + row * args.size;
    const __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256 never = _mm256_set1_ps(-INFINITY);
    for (int64_t i = begin; i < end; i += 8) {
        const __m256i inside = first_lanes(min64(8, end - i));
        const __m256i bits = _mm256_set1_epi32(static_cast<int>(words[i / 32] >> (i % 32)));
        const __m256i is_set = _mm256_cmpeq_epi32(_mm256_and_si256(bits, lane_bits), lane_bits);
        const __m256 logits = _mm256_maskload_ps(x + i, inside);
        _mm256_maskstore_ps(y + i, inside,
                            _mm256_blendv_ps(never, logits, _mm256_castsi256_ps(is_set)));
    }
}

void run_take_draws(const void* untyped, int64_t row, const Worker&) {
    const auto& args = *static_cast<const TakeDrawsArgs*>(untyped);
    const int64_t draws = args.num_draws[row], first = args.query_starts[row + 1] - draws;
    for (int64_t j = 0; j < args.most_draws; ++j)
        std::memcpy(args.y + (row * args.most_draws + j) * args.width,
                    args.x + (first + min64(j, draws - 1)) * args.stride,
                    static_cast<size_t>(args.width));
}

void run_keep(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const KeepArgs*>(untyped);
    for (int64_t row = 0; row < args.rows; ++row)
        for (int64_t j = 0; j < args.num_draws; ++j) {
            const int64_t place = row * args.num_draws + j;
            args.kept[place] = j < args.accepted[row] ? args.drawn[place] : args.faulty;
        }
}

void run_count_drafts(const void* untyped, int64_t row, const Worker&) {
    const auto& args = *static_cast<const CountDraftsArgs*>(untyped);
    const int32_t* drafts = args.drafts + row * args.drafts_stride;
    for (int64_t j = 1; j <= args.num_drafts; ++j) {
        int32_t* counts = args.counts + (row * (args.num_drafts + 1) + j) * args.stride;
        for (int64_t k = 0; k < j; ++k)
            if (drafts[k] >= 0) ++counts[drafts[k]];
    }
}

}  // namespace

void plan_squares(const int64_t* args, PhaseList& list) {
    list.add_rows(run_squares, args, as<SquaresArgs>(args).rows, kRowsPerChunk);
}

void plan_wide_norm(const int64_t* args, PhaseList& list) {
    list.add_rows(run_wide_norm, args, as<WideNormArgs>(args).rows, kRowsPerChunk);
}

void plan_mask(const int64_t* args, PhaseList& list) {
    const auto& mask = as<MaskArgs>(args);
    list.add(run_mask, args, mask.rows * ((mask.size + kMaskChunk - 1) / kMaskChunk));
}

void plan_take_draws(const int64_t* args, PhaseList& list) {
    list.add(run_take_draws, args, as<TakeDrawsArgs>(args).rows);
}

void plan_keep(const int64_t* args, PhaseList& list) { list.add(run_keep, args, 1); }

void plan_count_drafts(const int64_t* args, PhaseList& list) {
    list.add(run_count_drafts, args, as<CountDraftsArgs>(args).rows);
}

}  // namespace headstock
