// Gated short convolutions. What comes out for a token does not depend on how a prompt is cut.
#include "convolution.h"
#include "states.h"

namespace headstock {
namespace {

// Convolves some features of a row's tokens. The products b x are first written where the results
// go, which then replace them from the last token to the first: none is read after that.
void run_rows(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const ShortConvolutionArgs*>(untyped);
    const int64_t size = args.size, width = args.kernel_size, kept = width - 1;
    const int64_t blocks = conv_blocks(size), row = chunk / blocks;
    const int64_t begin = chunk % blocks * kConvFeatures, first = args.query_starts[row];
    const int64_t count = min64(kConvFeatures, size - begin);
    const int64_t tokens = args.query_starts[row + 1] - first, page = kept * size;
    const int32_t* entry = args.page_table + row * args.table_stride;
    const bool is_new = args.kv_lengths[row] <= tokens;
    const float* found = is_new ? nullptr : args.pages + entry[0] * page;
    float* left = args.pages + entry[1] * page + begin;
    auto* scratch = reinterpret_cast<float*>(worker.local);
    read_conv({nullptr, 0, nullptr, args.conv, args.bias, found, left, tokens, size, width}, begin,
              count, scratch);
    const float* bcx = args.bcx + first * args.stride + begin;
    float* y = args.y + first * size + begin;
    for (int64_t t = 0; t < tokens; ++t) {
        const float *b = bcx + t * args.stride, *x = b + 2 * size;
        if (args.is_gated)
            for (int64_t c = 0; c < count; ++c) y[t * size + c] = b[c] * x[c];
        else std::memcpy(y + t * size, b, static_cast<size_t>(count) * sizeof(float));
    }
    const auto input = [&](int64_t t) {
        return t < 0 ? scratch + (kept + t) * kConvFeatures : y + t * size;
    };
    for (int64_t i = 0; i < kept; ++i)
        std::memcpy(left + i * size, input(tokens - kept + i),
                    static_cast<size_t>(count) * sizeof(float));
    const float* weights = scratch + kept * kConvFeatures;
    float sum[kConvFeatures];
    for (int64_t t = tokens - 1; t >= 0; --t) {
        for (int64_t c = 0; c < count; ++c) sum[c] = args.bias[begin + c];
        for (int64_t i = 0; i < width; ++i) {
            const float *from = input(t - kept + i), *w = weights + i * kConvFeatures;
            for (int64_t c = 0; c < count; ++c) sum[c] += w[c] * from[c];
        }
        const float* by = bcx + t * args.stride + size;
        for (int64_t c = 0; c < count; ++c) y[t * size + c] = args.is_gated ? by[c] * sum[c] : sum[c];
    }
}

}  // namespace

void plan_short_convolution(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<ShortConvolutionArgs>(untyped);
    list.need_local(static_cast<size_t>(conv_scratch(args.kernel_size)) * sizeof(float));
    list.add(run_rows, untyped, args.rows * conv_blocks(args.size));
}

}  // namespace headstock
