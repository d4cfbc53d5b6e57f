// Streams of hidden states, features of which the highest count, and identities: loops over the
// features of a row that the compiler turns into vectors.
#include "streams.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

// Calls f(row) for the rows of a chunk.
template <class Args, class F>
inline void for_rows(const Args& args, int64_t chunk, F f) {
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) f(row);
}

// Returns the sums of x and of its squares.
struct Moments {
    float sum, squares;
};

Moments moments_of(const float* x, int64_t size) {
    __m256 sums = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        sums = _mm256_add_ps(sums, v);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    Moments found{sum8(sums), sum8(squares)};
    for (; i < size; ++i) {
        found.sum += x[i];
        found.squares += x[i] * x[i];
    }
    return found;
}

void run_predict(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const PredictArgs*>(untyped);
    for_rows(args, chunk, [&](int64_t row) {
        const float* x = args.x + row * args.x_stride;
        const float* coefs = args.coefs + row * args.coefs_stride;
        float* y = args.y + row * args.streams * args.size;
        for (int64_t a = 0; a < args.streams; ++a, y += args.size) {
            const float* own = x + a * args.size;
            std::copy(own, own + args.size, y);
            for (int64_t b = 0; b < args.streams; ++b) {
                const float coef = coefs[a * args.streams + b];
                const float* other = x + b * args.size;
                for (int64_t i = 0; i < args.size; ++i) y[i] += coef * other[i];
            }
        }
    });
}

void run_add_streams(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const AddStreamsArgs*>(untyped);
    for_rows(args, chunk, [&](int64_t row) {
        const float* first = args.x + row * args.x_stride;
        const float* other = args.other + row * args.other_stride;
        const float* coefs = args.coefs ? args.coefs + row * args.coefs_stride : nullptr;
        float* y = args.y + row * args.streams * args.size;
        for (int64_t a = 0; a < args.streams; ++a, y += args.size) {
            const float* x = first + a * args.size;
            if (coefs) {
                const float share = coefs[a] + 1.0f;
                for (int64_t i = 0; i < args.size; ++i)
                    y[i] = x[i] + (other[i] - first[i]) * share;
            } else if (a == 0) {
                std::copy(x, x + args.size, y);
            } else {
                for (int64_t i = 0; i < args.size; ++i) y[i] = x[i] + other[i];
            }
        }
    });
}

void run_match(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const MatchArgs*>(untyped);
    const auto size = static_cast<float>(args.size);
    const auto least = static_cast<float>(args.least_square);
    for_rows(args, chunk, [&](int64_t row) {
        const float* like = args.like + row * args.like_stride;
        const float wanted = std::sqrt(moments_of(like, args.size).squares / size);
        const float* x = args.x + row * args.x_stride;
        float* y = args.y + row * args.streams * args.size;
        for (int64_t a = 0; a < args.streams; ++a, x += args.size, y += args.size) {
            const float own = moments_of(x, args.size).squares / size;
            const float factor = wanted / std::sqrt(own < least ? least : own);
            for (int64_t i = 0; i < args.size; ++i) y[i] = x[i] * factor;
        }
    });
}

void run_mean(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const MeanArgs*>(untyped);
    const float share = 1.0f / static_cast<float>(args.streams);
    for_rows(args, chunk, [&](int64_t row) {
        const float* x = args.x + row * args.x_stride;
        float* y = args.y + row * args.size;
        std::copy(x, x + args.size, y);
        for (int64_t a = 1; a < args.streams; ++a)
            for (int64_t i = 0; i < args.size; ++i) y[i] += x[a * args.size + i];
        for (int64_t i = 0; i < args.size; ++i) y[i] *= share;
    });
}

void run_moments(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const MomentsArgs*>(untyped);
    for_rows(args, chunk, [&](int64_t row) {
        const Moments found = moments_of(args.x + row * args.x_stride, args.size);
        args.sums[2 * row] = found.sum;
        args.sums[2 * row + 1] = found.squares;
    });
}

void run_keep_above(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const KeepAboveArgs*>(untyped);
    const auto width = static_cast<float>(args.width);
    for_rows(args, chunk, [&](int64_t row) {
        const float mean = args.sums[2 * row] / width;
        const float square = args.sums[2 * row + 1] / width;
        const float variance = square - mean * mean;
        const float deviation = std::sqrt(variance > 0.0f ? variance : 0.0f);
        const float threshold = mean + deviation * static_cast<float>(args.deviations);
        const float* x = args.x + row * args.x_stride;
        float* y = args.y + row * args.size;
        for (int64_t i = 0; i < args.size; ++i) {
            const float above = x[i] - threshold;
            y[i] = above > 0.0f ? above : 0.0f;
        }
    });
}

template <class Number>
void replace(const ReplaceArgs& args) {
    const auto* x = static_cast<const Number*>(args.x);
    auto* y = static_cast<Number*>(args.y);
    for (int64_t i = 0; i < args.count; ++i)
        y[i] = x[i] >= args.limit ? static_cast<Number>(args.fill) : x[i];
}

void run_replace(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const ReplaceArgs*>(untyped);
    if (args.bytes == 4) replace<int32_t>(args);
    else replace<int64_t>(args);
}

void run_put_rows(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const PutRowsArgs*>(untyped);
    for_rows(args, chunk, [&](int64_t row) {
        const int64_t place = args.ids[row] - args.first;
        const bool is_there = place >= 0 && place < args.count;
        const float* from = is_there ? args.table + place * args.size : args.x + row * args.x_stride;
        std::copy(from, from + args.size, args.y + row * args.size);
    });
}

void run_identities(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const IdentitiesArgs*>(untyped);
    for_rows(args, chunk, [&](int64_t row) {
        const float* weights = args.weights + row * args.chosen;
        const int32_t* experts = args.experts + row * args.chosen;
        float share = 0.0f;
        bool has_others = false;  // Without any, what lies in `routed` may be anything.
        for (int64_t k = 0; k < args.chosen; ++k) {
            if (experts[k] >= args.num_experts) share += weights[k];
            else has_others = true;
        }
        const float* x = args.x + row * args.x_stride;
        const float* routed = args.routed + row * args.routed_stride;
        float* y = args.y + row * args.size;
        for (int64_t i = 0; i < args.size; ++i) y[i] = share * x[i];
        if (has_others)
            for (int64_t i = 0; i < args.size; ++i) y[i] += routed[i];
    });
}

}  // namespace

void plan_predict(const int64_t* args, PhaseList& list) {
    list.add_rows(run_predict, args, as<PredictArgs>(args).rows, kRowsPerChunk);
}

void plan_add_streams(const int64_t* args, PhaseList& list) {
    list.add_rows(run_add_streams, args, as<AddStreamsArgs>(args).rows, kRowsPerChunk);
}

void plan_match(const int64_t* args, PhaseList& list) {
    list.add_rows(run_match, args, as<MatchArgs>(args).rows, kRowsPerChunk);
}

void plan_mean(const int64_t* args, PhaseList& list) {
    list.add_rows(run_mean, args, as<MeanArgs>(args).rows, kRowsPerChunk);
}

void plan_moments(const int64_t* args, PhaseList& list) {
    list.add_rows(run_moments, args, as<MomentsArgs>(args).rows, kRowsPerChunk);
}

void plan_keep_above(const int64_t* args, PhaseList& list) {
    list.add_rows(run_keep_above, args, as<KeepAboveArgs>(args).rows, kRowsPerChunk);
}

void plan_replace(const int64_t* args, PhaseList& list) { list.add(run_replace, args, 1); }

void plan_put_rows(const int64_t* args, PhaseList& list) {
    list.add_rows(run_put_rows, args, as<PutRowsArgs>(args).rows, kRowsPerChunk);
}

void plan_identities(const int64_t* args, PhaseList& list) {
    list.add_rows(run_identities, args, as<IdentitiesArgs>(args).rows, kRowsPerChunk);
}

}  // namespace headstock
