// The threads that run phases.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "program.h"

namespace headstock {

// A team of the calling thread and num_threads - 1 helpers.
//
// Chunks of a phase are dealt out in contiguous ranges, one a thread; who is done takes chunks
// from the others. A phase is over when its chunks are, whoever ran them: a helper that the
// operating system has set aside delays no other unless it holds a chunk, which matters where the
// server's other processes share the cores. Helpers spin for a short while after a job and then
// sleep: an idle server uses no CPU.
class Team {
public:
    Team(int num_threads, int spin_us);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // Runs the phases in order and returns when all chunks are done. One caller at a time.
    // The phases must stay where they are until `settle`.
    void run(const Phase* phases, int64_t num_phases, char* shared, size_t local_bytes);

    // Waits until no thread looks at the phases of the job before the last kRing - 1: a caller that
    // rotates kRing lists of phases may then overwrite the oldest.
    void make_room();

    // Waits until no helper looks at phases of earlier jobs: before they are freed.
    void settle();

    // Keeps helper t on processor cpus[t], where the system can.
    void bind(const int64_t* cpus, int64_t count);

    int num_threads() const { return num_threads_; }

    static constexpr int kRing = 8;  // Jobs whose descriptors a late helper may still read.

private:
    struct Job {
        const Phase* phases = nullptr;
        int64_t num_phases = 0;
        char* shared = nullptr;
        size_t local_bytes = 0;
        uint64_t first_sequence = 0;  // Sequence number of its first phase.
        uint64_t completed_before = 0;  // Chunks completed before it.
    };

    // One cache line each: no false sharing.
    struct alignas(64) Slot {
        std::atomic<uint64_t> next{0};  // (sequence number of a phase) << 24 | next chunk.
    };
    struct alignas(64) Presence {
        std::atomic<uint64_t> job{0};  // Number of the job that a helper looks at; 0: none.
    };

    void help(int thread);
    const Job& publish(const Phase* phases, int64_t num_phases, char* shared, size_t local_bytes);
    void work(const Job& job, int thread, std::vector<char>& local);
    void run_phase(const Phase& phase, uint64_t sequence, const Worker& worker,
                   std::atomic<uint64_t>& completed);
    uint64_t wait_for_job(uint64_t seen);
    void wait_until_left(uint64_t job);

    const int num_threads_;
    const int spin_us_;
    Job ring_[kRing];
    std::vector<Slot> slots_;
    std::vector<Presence> presence_;
    std::vector<char> caller_local_;
    uint64_t sequence_ = 1;
    uint64_t total_chunks_ = 0;
    alignas(64) std::atomic<uint64_t> job_{0};
    alignas(64) std::atomic<uint64_t> completed_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> closing_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> helpers_;
};

}  // namespace headstock
