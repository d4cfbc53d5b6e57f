// Mixtures of experts: choosing experts, and what each makes of the rows that chose it.
//
// The number of chunks is that of the most experts that can be chosen; what is chosen decides which
// of them have work. Rows are multiplied by the kernels of matrix products, so a row's bits are those
// of its own product; a token's results are added up in the order of its choices.
#include "kernels.h"
#include "product.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

void route_row(const RouteArgs& args, const float* logits, float* weights, int32_t* experts) {
    bool has_nan = false;
    for (int64_t e = 0; e < args.size; ++e) has_nan |= std::isnan(logits[e]);
    for (int64_t j = 0; j < args.k; ++j) {
        int64_t best = -1;
        for (int64_t e = 0; e < args.size && !has_nan; ++e) {
            if (best >= 0 && !(logits[e] > logits[best])) continue;
            bool is_taken = false;
            for (int64_t i = 0; i < j; ++i) is_taken |= experts[i] == e;
            if (!is_taken) best = e;
        }
        experts[j] = static_cast<int32_t>(best);
    }
    float whole = 0;
    for (int64_t j = 0; j < args.k; ++j) {
        weights[j] = has_nan ? 0.0f : std::exp(logits[experts[j]] - logits[experts[0]]);
        whole += weights[j];
    }
    if (has_nan) return;
    if (!args.is_normalized) {
        whole = 0;
        for (int64_t e = 0; e < args.size; ++e) whole += std::exp(logits[e] - logits[experts[0]]);
    }
    for (int64_t j = 0; j < args.k; ++j) weights[j] /= whole;
}

void run_route(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const RouteArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.rows);
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row)
        route_row(args, args.logits + row * args.stride, args.weights + row * args.k,
                  args.experts + row * args.k);
}

ExpertLists lists_of(const ExpertsArgs& args) {
    int32_t* active = args.lists + args.num_experts + 1;
    int32_t* choices = active + args.num_experts;
    return {args.lists, active, choices, choices + args.tokens * args.k};
}

int64_t num_active(const ExpertsArgs& args) {
    return min64(args.num_experts, args.tokens * args.k);
}

// Sorts the choices by expert, then by token.
void run_line_up(const void* untyped, int64_t, const Worker&) {
    const auto& args = *static_cast<const ExpertsArgs*>(untyped);
    const ExpertLists lists = lists_of(args);
    const int64_t count = args.tokens * args.k;
    for (int64_t e = 0; e <= args.num_experts; ++e) lists.begins[e] = 0;
    for (int64_t i = 0; i < count; ++i)
        if (args.experts[i] >= 0) ++lists.begins[args.experts[i] + 1];
    int64_t found = 0;
    for (int64_t e = 0; e < args.num_experts; ++e) {
        if (lists.begins[e + 1] > 0) lists.active[found++] = static_cast<int32_t>(e);
        lists.begins[e + 1] += lists.begins[e];
    }
    for (; found < args.num_experts; ++found) lists.active[found] = -1;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t expert = args.experts[i];
        lists.rows[i] = expert >= 0 ? lists.begins[expert]++ : -1;
        if (expert >= 0) lists.choices[lists.rows[i]] = static_cast<int32_t>(i);
    }
    for (int64_t e = args.num_experts; e > 0; --e) lists.begins[e] = lists.begins[e - 1];
    lists.begins[0] = 0;
}

int64_t num_rows(const ExpertsArgs& args) { return lists_of(args).begins[args.num_experts]; }

void run_gather(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ExpertsArgs*>(untyped);
    const ExpertLists lists = lists_of(args);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, num_rows(args));
    const int64_t size = args.gate_up.weight->in_features;
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row)
        std::memcpy(const_cast<float*>(args.gate_up.x) + row * args.gate_up.x_stride,
                    args.x + lists.choices[row] / args.k * args.x_stride,
                    static_cast<size_t>(size) * sizeof(float));
}

// One of a weight's experts, as a weight of its own.
Weight expert_of(const Weight& all, int64_t num_experts, int64_t expert, int64_t out_features) {
    Weight one = all;
    one.num_panels = all.num_panels / num_experts;
    one.out_features = out_features;
    one.data = all.panel(expert * one.num_panels);
    one.row_factor = all.row_factor + expert * one.num_panels * kPanel;
    one.bias = all.bias + expert * one.num_panels * kPanel;
    return one;
}

Grid grid_of(const ExpertsArgs& args, const LinearArgs& product) {
    const int64_t panels = product.weight->num_panels / args.num_experts;
    return grid_of(*product.weight, panels, product.m / num_active(args));
}

void multiply(const ExpertsArgs& args, const LinearArgs& product, int64_t chunk, char* shared) {
    const ExpertLists lists = lists_of(args);
    const Grid grid = grid_of(args, product);
    const int64_t expert = lists.active[chunk / grid.num_panel_chunks];
    if (expert < 0) return;
    const Weight weight = expert_of(*product.weight, args.num_experts, expert, product.y_stride);
    LinearArgs own = product;
    own.weight = &weight;
    const int64_t panel = chunk % grid.num_panel_chunks * grid.panels_per_chunk;
    const int64_t last_panel = min64(panel + grid.panels_per_chunk, weight.num_panels);
    const int64_t end = lists.begins[expert + 1];
    for (int64_t row = lists.begins[expert]; row < end; row += grid.rows_per_block)
        weight.kernel->multiply(own, {panel, last_panel, row, min64(row + grid.rows_per_block, end)},
                                shared);
}

void run_gate_up(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const ExpertsArgs*>(untyped);
    multiply(args, args.gate_up, chunk, worker.shared);
}

void run_down(const void* untyped, int64_t chunk, const Worker& worker) {
    const auto& args = *static_cast<const ExpertsArgs*>(untyped);
    multiply(args, args.down, chunk, worker.shared);
}

void run_activate(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ExpertsArgs*>(untyped);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, num_rows(args));
    const int64_t size = args.down.weight->in_features;
    const bool is_gated = args.gate_up.y_stride > size;
    const Activation activation{args.activation, {args.parameters[0], args.parameters[1]}};
    for (int64_t row = chunk * kRowsPerChunk; row < last; ++row) {
        float* gate = args.gate_up.y + row * args.gate_up.y_stride;
        activate_row(activation, gate, is_gated ? gate + size : nullptr, gate, size);
    }
}

void run_sum(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const ExpertsArgs*>(untyped);
    const ExpertLists lists = lists_of(args);
    const int64_t last = min64((chunk + 1) * kRowsPerChunk, args.tokens);
    const int64_t size = args.down.y_stride;
    for (int64_t token = chunk * kRowsPerChunk; token < last; ++token) {
        float* y = args.y + token * size;
        std::memset(y, 0, static_cast<size_t>(size) * sizeof(float));
        for (int64_t i = token * args.k; i < (token + 1) * args.k; ++i) {
            if (lists.rows[i] < 0) continue;
            const float* part = args.down.y + lists.rows[i] * size;
            const float weight = args.weights[i];
            for (int64_t d = 0; d < size; ++d) y[d] += weight * part[d];
        }
    }
}

void plan_product(const ExpertsArgs& args, const LinearArgs& product, ChunkFn run, PhaseList& list) {
    if (product.weight->kernel->prepare) product.weight->kernel->prepare(product, list);
    list.add(run, &args, num_active(args) * grid_of(args, product).num_panel_chunks);
}

}  // namespace

void plan_route(const int64_t* args, PhaseList& list) {
    list.add_rows(run_route, args, as<RouteArgs>(args).rows, kRowsPerChunk);
}

void plan_experts(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<ExpertsArgs>(untyped);
    if (args.tokens == 0) return;
    const int64_t count = args.tokens * args.k;
    list.add(run_line_up, &args, 1);
    list.add_rows(run_gather, &args, count, kRowsPerChunk);
    plan_product(args, args.gate_up, run_gate_up, list);
    list.add_rows(run_activate, &args, count, kRowsPerChunk);
    plan_product(args, args.down, run_down, list);
    list.add_rows(run_sum, &args, args.tokens, kRowsPerChunk);
}

}  // namespace headstock
