// Measures the kernels of one kind of weight against each other.
//
// They take turns, and the best of several turns counts: other work on the machine only takes time
// away. A later one in the list has to be clearly quicker, so that two starts choose the same.
#include "measure.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu.h"
#include "engine.h"
#include "kernels.h"

namespace headstock {
namespace {

constexpr int64_t kIn = 512, kOut = 1024;  // Of the weight that is tried: some 10 ms for a kind.
constexpr int64_t kRows[] = {1, 16, 64};   // One request's decode step, several's, a prompt.
constexpr int kNumRows = 3;
constexpr int64_t kMostRows = kRows[kNumRows - 1];
constexpr int kTurns = 5;
constexpr double kClearly = 0.9;  // What a later kernel must take at most, of an earlier one's time.
constexpr int kSomeBits = 0x11;   // Weights and scales that are small numbers in every layout.

struct Candidate {
    const WeightKernel* kernel;
    std::unique_ptr<Weight, void (*)(Weight*)> weight;
    double us[kNumRows];

    // The mean of how long it takes beside another.
    double beside(const Candidate& other) const {
        double product = 1;
        for (int i = 0; i < kNumRows; ++i) product *= us[i] / other.us[i];
        return std::cbrt(product);
    }
};

double microseconds(Engine& engine, const LinearArgs& args) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    PhaseList list(engine.num_threads());
    plan_linear(reinterpret_cast<const int64_t*>(&args), list);
    engine.run_phases(std::move(list));
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

void take_turns(std::vector<Candidate>& candidates, Engine& engine) {
    std::vector<float> x(kMostRows * kIn), y(kMostRows * kOut);
    uint32_t bits = 1;
    for (float& value : x) {
        bits = bits * 1664525u + 1013904223u;
        value = static_cast<float>(bits >> 8) * 0x1p-23f - 1.0f;
    }
    for (int turn = 0; turn < kTurns; ++turn)
        for (int i = 0; i < kNumRows; ++i)
            for (Candidate& each : candidates) {
                const LinearArgs args{each.weight.get(), x.data(), kIn, y.data(), kOut, kRows[i]};
                const double took = microseconds(engine, args);
                if (turn == 0 || took < each.us[i]) each.us[i] = took;
            }
}

std::string figures(const Candidate& each) {
    std::string text = each.kernel->name;
    for (int i = 0; i < kNumRows; ++i)
        text += (i ? ", " : " ") + std::to_string(std::lround(each.us[i]));
    return text;
}

// Tries all of `kernels`. Without memory for that the first of them is taken.
KernelChoices::Choice quickest(WeightKind kind, int64_t group,
                               const std::vector<const WeightKernel*>& kernels, Engine& engine) {
    std::vector<Candidate> candidates;
    for (const WeightKernel* kernel : kernels) {
        Weight* weight = new_weight(kernel, kind, kIn, kOut, group);
        if (!weight) return {kind, group, kernels[0], "there is no memory to measure with"};
        std::memset(weight->data, kSomeBits,
                    static_cast<size_t>(weight->num_panels * weight->panel_bytes));
        candidates.push_back({kernel, {weight, free_weight}, {}});
    }
    take_turns(candidates, engine);
    const Candidate* best = &candidates[0];
    std::string reason = "microseconds with 1, 16 and 64 rows: ";
    for (const Candidate& each : candidates) {
        if (each.beside(*best) < kClearly) best = &each;
        reason += (&each == &candidates[0] ? "" : "; ") + figures(each);
    }
    return {kind, group, best->kernel, reason};
}

}  // namespace

const KernelChoices::Choice* KernelChoices::of(WeightKind kind, int64_t group, Engine& engine) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Choice& made : made_)
        if (made.kind == kind && made.group == group) return &made;
    const auto kernels = allowed_kernels(kind, group, engine.features);
    if (kernels.empty()) return nullptr;
    Choice choice{kind, group, kernels[0], "the first in the list"};
    if (kernels.size() == 1) choice.reason = "there is no other for this processor";
    else if (engine.features & kMeasured) choice = quickest(kind, group, kernels, engine);
    choice.reason.insert(0, std::string(choice.kernel->name) + ": ");
    made_.push_back(std::move(choice));
    return &made_.back();
}

}  // namespace headstock
