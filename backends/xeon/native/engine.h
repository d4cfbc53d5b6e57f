// An opened device: its threads, its scratch, and the programs that run on them.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

#include "measure.h"
#include "program.h"
#include "team.h"

namespace headstock {

const Kernel* kernel_table(int64_t* count);

// A captured step: its instructions (which phases point into) and what they became.
struct Program {
    std::vector<Instruction> instructions;
    std::vector<Phase> phases;
    size_t shared_bytes;
    size_t local_bytes;
};

class Engine {
public:
    Engine(int num_threads, int spin_us, int64_t features)
        : features(features), team_(num_threads, spin_us) {}
    ~Engine();

    Program* compile(const Instruction* instructions, int64_t count) const;
    bool run(const Program& program);
    bool run_once(const Instruction* instructions, int64_t count);
    bool run_phases(PhaseList list);
    void forget(Program* program);
    void bind(const int64_t* cpus, int64_t count) { team_.bind(cpus, count); }
    int num_threads() const { return team_.num_threads(); }

    const int64_t features;
    KernelChoices choices;

private:
    bool reserve(size_t shared_bytes);

    std::mutex mutex_;  // One program at a time.
    char* shared_ = nullptr;
    size_t shared_bytes_ = 0;
    std::vector<std::vector<Phase>> recent_{Team::kRing};  // Late helpers may still look at them.
    size_t num_recent_ = 0;
    Team team_;  // The last: its threads end before what they look at goes.
};

}  // namespace headstock
