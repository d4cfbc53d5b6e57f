#include "engine.h"

#include "choices.h"
#include "chosen.h"
#include "compressed.h"
#include "delta.h"
#include "encoder.h"
#include "hyper.h"
#include "indexer.h"
#include "kernels.h"
#include "latent.h"
#include "memory.h"
#include "routing.h"
#include "states.h"
#include "streams.h"

namespace headstock {

namespace {

constexpr Kernel kKernels[] = {
    {"linear", plan_linear},
    {"look_up", plan_look_up},
    {"norm", plan_norm},
    {"lora", plan_lora},
    {"activation", plan_activation},
    {"cap", plan_cap},
    {"features", plan_features},
    {"columns", plan_columns},
    {"layer_norm", plan_layer_norm},
    {"activate", plan_activate},
    {"embed", plan_embed},
    {"pool", plan_pool},
    {"squares", plan_squares},
    {"wide_norm", plan_wide_norm},
    {"mask", plan_mask},
    {"take_draws", plan_take_draws},
    {"keep", plan_keep},
    {"count_drafts", plan_count_drafts},
    {"rotate", plan_rotate},
    {"write", plan_write},
    {"attend_plan", plan_attend_plan},
    {"attend", plan_attend},
    {"argmax", plan_argmax},
    {"logprobs", plan_logprobs},
    {"take", plan_take},
    {"copy", plan_copy},
    {"place", plan_place},
    {"place_view", plan_place_view},
    {"advance", plan_advance},
    {"settle", plan_settle},
    {"accept", plan_accept},
    {"spread", plan_spread},
    {"append", plan_append},
    {"ngrams", plan_ngrams},
    {"enter", plan_enter},
    {"count", plan_count},
    {"mark", plan_mark},
    {"forbid", plan_forbid},
    {"penalise", plan_penalise},
    {"bias", plan_bias},
    {"draw", plan_draw},
    {"route", plan_route},
    {"experts", plan_experts},
    {"delta", plan_delta},
    {"gated_norm", plan_gated_norm},
    {"gate", plan_gate},
    {"gate_heads", plan_gate_heads},
    {"gate_by_silu", plan_gate_by_silu},
    {"gated_group_norm", plan_gated_group_norm},
    {"mamba2", plan_mamba2},
    {"selective_scan", plan_selective_scan},
    {"short_convolution", plan_short_convolution},
    {"route_experts", plan_route_experts},
    {"add_shared", plan_add_shared},
    {"weigh_experts", plan_weigh_experts},
    {"predict", plan_predict},
    {"add_streams", plan_add_streams},
    {"match", plan_match},
    {"mean", plan_mean},
    {"moments", plan_moments},
    {"keep_above", plan_keep_above},
    {"replace", plan_replace},
    {"put_rows", plan_put_rows},
    {"identities", plan_identities},
    {"latent_prepare", plan_latent_prepare},
    {"latent_write", plan_latent_write},
    {"latent_absorb", plan_latent_absorb},
    {"latent_attend", plan_latent_attend},
    {"latent_expand", plan_latent_expand},
    {"attend_latents", plan_attend_latents},
    {"attend_blocks", plan_attend_blocks},
    {"compress", plan_compress},
    {"attend_entries", plan_attend_entries},
    {"rotate_last", plan_rotate_last},
    {"collapse", plan_collapse},
    {"expand", plan_expand},
    {"groups", plan_groups},
    {"index_prepare", plan_index_prepare},
    {"index_choose", plan_index_choose},
};

}  // namespace

const Kernel* kernel_table(int64_t* count) {
    *count = static_cast<int64_t>(sizeof(kKernels) / sizeof(kKernels[0]));
    return kKernels;
}

Engine::~Engine() { free_pages(shared_, shared_bytes_); }

Program* Engine::compile(const Instruction* instructions, int64_t count) const {
    auto* program = new Program{{instructions, instructions + count}, {}, 0, 0};
    PhaseList list(team_.num_threads());
    for (const auto& instruction : program->instructions)
        kKernels[instruction.kernel].plan(instruction.args, list);
    program->phases = std::move(list.phases);
    program->shared_bytes = list.shared_bytes;
    program->local_bytes = list.local_bytes;
    return program;
}

bool Engine::run(const Program& program) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!reserve(program.shared_bytes)) return false;
    team_.run(program.phases.data(), static_cast<int64_t>(program.phases.size()), shared_,
              program.local_bytes);
    return true;
}

bool Engine::run_once(const Instruction* instructions, int64_t count) {
    PhaseList list(team_.num_threads());
    for (int64_t i = 0; i < count; ++i)
        kKernels[instructions[i].kernel].plan(instructions[i].args, list);
    return run_phases(std::move(list));
}

bool Engine::run_phases(PhaseList list) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!reserve(list.shared_bytes)) return false;
    team_.make_room();
    auto& phases = recent_[num_recent_++ % recent_.size()];
    phases = std::move(list.phases);
    team_.run(phases.data(), static_cast<int64_t>(phases.size()), shared_, list.local_bytes);
    return true;
}

void Engine::forget(Program* program) {
    std::lock_guard<std::mutex> lock(mutex_);
    team_.settle();
    delete program;
}

// Grows the scratch that instructions share; false: there is no memory.
bool Engine::reserve(size_t bytes) {
    if (bytes <= shared_bytes_) return true;
    team_.settle();
    free_pages(shared_, shared_bytes_);
    shared_ = static_cast<char*>(allocate_pages(bytes));
    shared_bytes_ = shared_ ? bytes : 0;
    return shared_ != nullptr;
}

}  // namespace headstock
