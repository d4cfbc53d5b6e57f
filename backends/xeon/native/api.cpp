// The C interface that the Python package loads: handles, numbers and addresses only.
//
// No function throws or prints. What can run out of memory returns null or 0. The caller keeps
// every address in an instruction valid for as long as the instruction may run.
#include <new>

#include "attention.h"
#include "cpu.h"
#include "engine.h"
#include "kernels.h"
#include "memory.h"

using namespace headstock;

#define HS_API extern "C" __attribute__((visibility("default")))

#ifndef HS_SOURCES
#define HS_SOURCES "unknown"
#endif

namespace {

struct PackArgs {
    Weight* weight;
    Canonical from;
};

constexpr int64_t kPanelsPerPack = 4;

void run_pack(const void* untyped, int64_t chunk, const Worker&) {
    const auto& args = *static_cast<const PackArgs*>(untyped);
    const int64_t first_panel = args.from.row_begin / kPanel + chunk * kPanelsPerPack;
    const int64_t begin = (first_panel) * kPanel - args.from.row_begin;
    const int64_t end = begin + kPanelsPerPack * kPanel;
    for (int64_t i = begin < 0 ? 0 : begin; i < end && i < args.from.num_rows; ++i)
        args.weight->kernel->layout->pack_row(*args.weight, args.from, i);
}

// Runs `work`; what it throws when memory is out becomes null or 0.
template <class Work>
auto or_nothing(Work work) noexcept -> decltype(work()) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        return {};
    }
}

}  // namespace

// Digest of the sources that this library was built from.
HS_API const char* hs_sources() { return HS_SOURCES; }

HS_API int64_t hs_detect() { return detect_features(); }

HS_API int64_t hs_kernel_count() {
    int64_t count;
    kernel_table(&count);
    return count;
}

HS_API const char* hs_kernel_name(int64_t kernel) {
    int64_t count;
    return kernel_table(&count)[kernel].name;
}

HS_API Engine* hs_open(int64_t num_threads, int64_t spin_us, int64_t features) {
    return new (std::nothrow) Engine(static_cast<int>(num_threads), static_cast<int>(spin_us),
                                     features);
}

// Keeps helper thread t on processor cpus[t]; cpus[0] is the caller's, which is left alone.
HS_API void hs_bind(Engine* engine, const int64_t* cpus, int64_t count) {
    engine->bind(cpus, count);
}

HS_API void hs_close(Engine* engine) { delete engine; }

HS_API int64_t hs_run(Engine* engine, const Instruction* instructions, int64_t count) {
    return or_nothing([=] { return engine->run_once(instructions, count); });
}

HS_API Program* hs_program_new(Engine* engine, const Instruction* instructions, int64_t count) {
    return or_nothing([=] { return engine->compile(instructions, count); });
}

HS_API int64_t hs_program_run(Engine* engine, const Program* program) {
    return or_nothing([=] { return engine->run(*program); });
}

HS_API void hs_program_free(Engine* engine, Program* program) { engine->forget(program); }

HS_API void* hs_pages_new(int64_t bytes) { return allocate_pages(static_cast<size_t>(bytes)); }

HS_API void hs_pages_free(void* memory, int64_t bytes) {
    free_pages(memory, static_cast<size_t>(bytes));
}

// Returns null when no kernel takes this kind and group on this processor, or without memory.
HS_API Weight* hs_weight_new(Engine* engine, int64_t kind, int64_t in_features,
                             int64_t out_features, int64_t group) {
    const auto of = static_cast<WeightKind>(kind);
    const auto* chosen = or_nothing([=] { return engine->choices.of(of, group, *engine); });
    return chosen ? new_weight(chosen->kernel, of, in_features, out_features, group) : nullptr;
}

// Names the kernel of such weights, and says why it is that one; null when none takes them.
HS_API const char* hs_weight_choice(Engine* engine, int64_t kind, int64_t group) {
    const auto of = static_cast<WeightKind>(kind);
    const auto* chosen = or_nothing([=] { return engine->choices.of(of, group, *engine); });
    return chosen ? chosen->reason.c_str() : nullptr;
}

HS_API void hs_weight_free(Weight* weight) { free_weight(weight); }

HS_API int64_t hs_weight_bytes(const Weight* weight) {
    return weight->num_panels * (weight->panel_bytes + 2 * kPanel * 4);
}

HS_API float* hs_weight_bias(Weight* weight) { return weight->bias; }

HS_API const char* hs_weight_kernel(const Weight* weight) { return weight->kernel->name; }

HS_API int64_t hs_weight_pack(Engine* engine, Weight* weight, const void* rows, int64_t stride,
                              const float* scale, const float* minimum, int64_t group,
                              int64_t num_rows, int64_t row_begin) {
    const PackArgs args{weight, {rows, stride, scale, minimum, group, num_rows, row_begin}};
    const int64_t last_panel = (row_begin + num_rows + kPanel - 1) / kPanel;
    const int64_t panels = last_panel - row_begin / kPanel;
    return or_nothing([&] {
        PhaseList list(engine->num_threads());
        list.add(run_pack, &args, (panels + kPanelsPerPack - 1) / kPanelsPerPack);
        return engine->run_phases(std::move(list));
    });
}

HS_API AttentionPlan* hs_attention_new(Engine* engine, int64_t max_tokens, int64_t max_rows,
                                       int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                                       int64_t max_length, int64_t window, int64_t is_causal) {
    return or_nothing([=] {
        return new AttentionPlan(max_tokens, max_rows, num_heads, num_kv_heads, head_dim, max_length,
                                 window, is_causal != 0, engine->num_threads());
    });
}

HS_API void hs_attention_free(AttentionPlan* plan) { delete plan; }
