// Choosing experts by scores, a bias on the choice and groups; and adding what shared experts make.
#include "routing.h"

#include "vector_avx2.h"

namespace headstock {
namespace {

float softplus(float x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))); }

// Scores of a row's logits.
void score_row(const RouteExpertsArgs& args, const float* logits, float* scores) {
    const auto kind = static_cast<ScoreKind>(args.scores);
    if (kind == ScoreKind::kSigmoid) {
        for (int64_t e = 0; e < args.size; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
        return;
    }
    if (kind == ScoreKind::kSqrtSoftplus) {
        for (int64_t e = 0; e < args.size; ++e) scores[e] = std::sqrt(softplus(logits[e]));
        return;
    }
    float largest = logits[0], whole = 0;
    for (int64_t e = 1; e < args.size; ++e) largest = logits[e] > largest ? logits[e] : largest;
    for (int64_t e = 0; e < args.size; ++e) whole += scores[e] = std::exp(logits[e] - largest);
    for (int64_t e = 0; e < args.size; ++e) scores[e] /= whole;
}

// Returns the highest of `count` values, the first of equals, and makes it -inf.
int64_t take_best(float* values, int64_t count, float* best) {
    int64_t at = 0;
    for (int64_t i = 1; i < count; ++i)
        if (values[i] > values[at]) at = i;
    *best = values[at];
    values[at] = -INFINITY;
    return at;
}

// Makes the choosing scores of experts outside of the best groups -inf.
void keep_groups(const RouteExpertsArgs& args, float* biased, float* groups) {
    const int64_t size = args.size / args.num_groups;
    for (int64_t g = 0; g < args.num_groups; ++g) {
        const float* of_group = biased + g * size;
        float best[2] = {-INFINITY, -INFINITY};
        for (int64_t e = 0; e < size; ++e) {
            if (of_group[e] > best[0]) {
                best[1] = best[0];
                best[0] = of_group[e];
            } else if (of_group[e] > best[1]) {
                best[1] = of_group[e];
            }
        }
        groups[g] = args.group_best == 2 ? best[0] + best[1] : best[0];
    }
    float* is_kept = groups + args.num_groups;
    for (int64_t g = 0; g < args.num_groups; ++g) is_kept[g] = 0;
    float ignored;
    for (int64_t i = 0; i < args.groups_kept; ++i)
        is_kept[take_best(groups, args.num_groups, &ignored)] = 1;
    for (int64_t e = 0; e < args.size; ++e)
        if (is_kept[e / size] == 0) biased[e] = -INFINITY;
}

void run_route(const void* untyped, int64_t row, const Worker& worker) {
    const auto& args = *static_cast<const RouteExpertsArgs*>(untyped);
    const float* logits = args.logits + row * args.stride;
    float* weights = args.weights + row * args.k;
    int32_t* experts = args.experts + row * args.k;
    auto* scores = reinterpret_cast<float*>(worker.local);
    float *biased = scores + args.size, *groups = biased + args.size;
    bool has_nan = false;
    for (int64_t e = 0; e < args.size; ++e) has_nan |= std::isnan(logits[e]);
    if (has_nan) {
        for (int64_t j = 0; j < args.k; ++j) weights[j] = 0, experts[j] = -1;
        return;
    }
    score_row(args, logits, scores);
    if (!args.ids) {
        for (int64_t e = 0; e < args.size; ++e)
            biased[e] = scores[e] + (args.bias ? args.bias[e] : 0);
        if (args.num_groups > 1) keep_groups(args, biased, groups);
    }
    float whole = 0, ignored;
    for (int64_t j = 0; j < args.k; ++j) {
        experts[j] = args.ids ? args.table[args.ids[row] * args.k + j]
                              : static_cast<int32_t>(take_best(biased, args.size, &ignored));
        weights[j] = scores[experts[j]];
        whole += weights[j];
    }
    const float by = args.is_normalized ? whole + 1e-20f : 1.0f;
    for (int64_t j = 0; j < args.k; ++j) weights[j] = weights[j] / by * static_cast<float>(args.factor);
}

void run_add(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const AddSharedArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        float* y = args.y + row * args.y_stride;
        const float* x = args.x + row * args.x_stride;
        const float weight =
            args.gate ? 1.0f / (1.0f + std::exp(-args.gate[row * args.gate_stride])) : 1.0f;
        for (int64_t i = 0; i < args.size; ++i) y[i] += weight * x[i];
    }
}

void run_weigh(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const WeighExpertsArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows) * args.k;
    for (int64_t i = chunk * kRowsPerChunk * args.k; i < last; ++i)
        args.y[i] = args.experts[i] < 0 ? 0.0f : args.weights[i] * args.scales[args.experts[i]];
}

}  // namespace

void plan_weigh_experts(const int64_t* args, PhaseList& list) {
    list.add_rows(run_weigh, args, as<WeighExpertsArgs>(args).rows, kRowsPerChunk);
}

void plan_route_experts(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<RouteExpertsArgs>(untyped);
    list.need_local(static_cast<size_t>(2 * args.size + 2 * args.num_groups) * sizeof(float));
    list.add(run_route, untyped, args.rows);
}

void plan_add_shared(const int64_t* args, PhaseList& list) {
    list.add_rows(run_add, args, as<AddSharedArgs>(args).rows, kRowsPerChunk);
}

}  // namespace headstock
