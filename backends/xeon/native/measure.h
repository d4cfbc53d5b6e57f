// Which kernel multiplies weights of a kind: the quickest here, as measured at the first of them.
#pragma once

#include <list>
#include <mutex>
#include <string>

#include "weight.h"

namespace headstock {

class Engine;

// What an engine has chosen so far.
class KernelChoices {
public:
    struct Choice {
        WeightKind kind;
        int64_t group;
        const WeightKernel* kernel;
        std::string reason;  // For people.
    };

    // Returns the choice for weights of `kind`, or null: no kernel takes them on this processor.
    const Choice* of(WeightKind kind, int64_t group, Engine& engine);

private:
    std::mutex mutex_;
    std::list<Choice> made_;  // A list: what was returned stays where it is.
};

}  // namespace headstock
