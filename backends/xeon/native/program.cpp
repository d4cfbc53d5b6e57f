#include "program.h"

namespace headstock {

void PhaseList::add(ChunkFn run, const void* args, int64_t num_chunks) {
    if (num_chunks > 0) phases.push_back({run, args, num_chunks, 0, nullptr, nullptr});
}

void PhaseList::add_rows(ChunkFn run, const void* args, int64_t rows, int64_t rows_per_chunk) {
    add(run, args, (rows + rows_per_chunk - 1) / rows_per_chunk);
    if (rows > 0) phases.back().rows_per_chunk = rows_per_chunk;
}

void PhaseList::add_rows_to_scratch(ChunkFn run, const void* args, int64_t rows,
                                    int64_t rows_per_chunk) {
    const int64_t num_chunks = (rows + rows_per_chunk - 1) / rows_per_chunk;
    if (!phases.empty()) {
        Phase& last = phases.back();
        const bool is_same = last.rows_per_chunk == rows_per_chunk && last.num_chunks == num_chunks;
        if (is_same && !last.then) {
            last.then = run;
            last.then_args = args;
            return;
        }
    }
    add_rows(run, args, rows, rows_per_chunk);
}

}  // namespace headstock
