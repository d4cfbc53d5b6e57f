// From logits to token ids.
#include "kernels.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

// Returns the place of the largest value, the first of equals. A row that has no number above
// minus infinity gives 0.
int64_t argmax_row(const float* x, int64_t size) {
    __m256 best = _mm256_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) best = _mm256_max_ps(_mm256_loadu_ps(x + i), best);
    float largest = max8(best);
    for (; i < size; ++i) largest = x[i] > largest ? x[i] : largest;
    const __m256 wanted = _mm256_set1_ps(largest);
    for (i = 0; i + 8 <= size; i += 8) {
        const __m256 same = _mm256_cmp_ps(_mm256_loadu_ps(x + i), wanted, _CMP_EQ_OQ);
        const int lanes = _mm256_movemask_ps(same);
        if (lanes) return i + __builtin_ctz(static_cast<unsigned>(lanes));
    }
    for (; i < size; ++i)
        if (x[i] == largest) return i;
    return 0;
}

void run_argmax(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ArgmaxArgs*>(untyped);
    args.ids[chunk] = argmax_row(args.logits + chunk * args.stride, args.size);
}

}  // namespace

void plan_argmax(const int64_t* args, PhaseList& list) {
    list.add(run_argmax, args, as<ArgmaxArgs>(args).rows);
}

}  // namespace headstock
