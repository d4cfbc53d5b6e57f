// What the engine executes: instructions, and the phases that a kernel turns one into.
//
// An instruction is a kernel's number and up to kMaxArgs 8-byte arguments (pointers, sizes, flags,
// doubles by their bits). A captured step is an array of them. A kernel *plans* an instruction
// into phases; a phase is a number of chunks that any thread may run in any order, and every chunk
// of a phase is done before the next phase begins. What a chunk computes depends on its number
// only, and every output element is accumulated by one chunk in a fixed order: results never
// depend on how many threads there are or on who ran what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headstock {

constexpr int kMaxArgs = 24;

struct Instruction {
    int64_t kernel;
    int64_t args[kMaxArgs];
};

// What a running chunk may use beyond its arguments.
struct Worker {
    int thread;    // Who runs it: for nothing that changes results.
    char* shared;  // Scratch of the instruction, from phase to phase.
    char* local;   // Scratch of this thread, within a chunk.
};

using ChunkFn = void (*)(const void* args, int64_t chunk, const Worker& worker);

struct Phase {
    ChunkFn run;
    const void* args;
    int64_t num_chunks;
    // Non-zero: chunk c touches rows [c * rows_per_chunk, ...) of its tensors and no others, so that
    // a phase that only reads those rows into scratch may follow in the same chunk.
    int64_t rows_per_chunk;
    ChunkFn then;            // Run after `run` in each chunk, with then_args; null: nothing.
    const void* then_args;
};

// Collects the phases of one or more instructions.
class PhaseList {
public:
    explicit PhaseList(int num_threads) : num_threads(num_threads) {}

    void add(ChunkFn run, const void* args, int64_t num_chunks);

    // Adds a phase over `rows` rows, `rows_per_chunk` a chunk.
    void add_rows(ChunkFn run, const void* args, int64_t rows, int64_t rows_per_chunk);

    // Adds a phase that reads only its own rows and writes only scratch. It joins the phase before
    // it when that one works on the same rows: one barrier less.
    void add_rows_to_scratch(ChunkFn run, const void* args, int64_t rows, int64_t rows_per_chunk);

    void need_shared(size_t bytes) { if (bytes > shared_bytes) shared_bytes = bytes; }
    void need_local(size_t bytes) { if (bytes > local_bytes) local_bytes = bytes; }

    std::vector<Phase> phases;
    size_t shared_bytes = 0;
    size_t local_bytes = 0;
    int num_threads;
};

using PlanFn = void (*)(const int64_t* args, PhaseList& list);

struct Kernel {
    const char* name;
    PlanFn plan;
};

// Rows a chunk takes so that it does about `elements` element operations.
static inline int64_t rows_for(int64_t row_size, int64_t elements) {
    const int64_t rows = elements / (row_size > 0 ? row_size : 1);
    return rows < 1 ? 1 : rows;
}

// Row chunks of element-wise work: the same for every kernel, so that neighbours can join.
constexpr int64_t kRowsPerChunk = 4;

}  // namespace headstock
