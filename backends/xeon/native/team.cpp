#include "team.h"

#include <chrono>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
static inline void pause_cpu() { _mm_pause(); }
#else
static inline void pause_cpu() {}
#endif

namespace headstock {

namespace {

constexpr int kChunkBits = 24;
constexpr uint64_t kChunkMask = (uint64_t{1} << kChunkBits) - 1;
constexpr int kSpinsBeforeYield = 4000;  // Some 50 us: longer waits mean that cores are shared.

// Waits politely: spins, and gives the core away when it takes long.
class Backoff {
public:
    void pause() {
        if (++spins_ < kSpinsBeforeYield) pause_cpu();
        else std::this_thread::yield();
    }

private:
    int spins_ = 0;
};

// First chunk of thread `t`'s range; with one chunk it is the caller's.
int64_t range_begin(int64_t num_chunks, int t, int num_threads) {
    return (num_chunks * t + num_threads - 1) / num_threads;
}

// Takes the next chunk of a slot's range in the phase `sequence`, or returns -1.
int64_t claim(std::atomic<uint64_t>& slot, uint64_t sequence, int64_t begin, int64_t end) {
    if (begin >= end) return -1;
    uint64_t seen = slot.load(std::memory_order_relaxed);
    for (;;) {
        const uint64_t at = seen >> kChunkBits;
        if (at > sequence) return -1;
        const int64_t chunk = at == sequence ? static_cast<int64_t>(seen & kChunkMask) : begin;
        if (chunk >= end) return -1;
        const uint64_t taken = sequence << kChunkBits | static_cast<uint64_t>(chunk + 1);
        if (slot.compare_exchange_weak(seen, taken, std::memory_order_acq_rel)) return chunk;
    }
}

void run_chunk(const Phase& phase, int64_t chunk, const Worker& worker) {
    phase.run(phase.args, chunk, worker);
    if (phase.then) phase.then(phase.then_args, chunk, worker);
}

char* aligned(std::vector<char>& buffer, size_t bytes) {
    if (buffer.size() < bytes + 64) buffer.resize(bytes + 64);
    const auto address = reinterpret_cast<uintptr_t>(buffer.data());
    return buffer.data() + ((64 - address % 64) % 64);
}

}  // namespace

Team::Team(int num_threads, int spin_us)
    : num_threads_(num_threads < 1 ? 1 : num_threads),
      spin_us_(spin_us),
      slots_(static_cast<size_t>(num_threads_)),
      presence_(static_cast<size_t>(num_threads_)) {
    for (int t = 1; t < num_threads_; ++t) helpers_.emplace_back([this, t] { help(t); });
}

Team::~Team() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_.store(true);
    }
    wake_.notify_all();
    for (auto& helper : helpers_) helper.join();
}

void Team::run(const Phase* phases, int64_t num_phases, char* shared, size_t local_bytes) {
    if (num_threads_ == 1) {
        const Worker worker{0, shared, aligned(caller_local_, local_bytes)};
        for (int64_t p = 0; p < num_phases; ++p)
            for (int64_t c = 0; c < phases[p].num_chunks; ++c) run_chunk(phases[p], c, worker);
        return;
    }
    const Job& job = publish(phases, num_phases, shared, local_bytes);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    work(job, 0, caller_local_);
}

const Team::Job& Team::publish(const Phase* phases, int64_t num_phases, char* shared,
                               size_t local_bytes) {
    make_room();
    const uint64_t number = job_.load(std::memory_order_relaxed) + 1;
    Job& job = ring_[number % kRing];
    job = {phases, num_phases, shared, local_bytes, sequence_, total_chunks_};
    sequence_ += static_cast<uint64_t>(num_phases);
    for (int64_t p = 0; p < num_phases; ++p)
        total_chunks_ += static_cast<uint64_t>(phases[p].num_chunks);
    job_.store(number, std::memory_order_seq_cst);
    return job;
}

void Team::work(const Job& job, int thread, std::vector<char>& local) {
    const Worker worker{thread, job.shared, aligned(local, job.local_bytes)};
    uint64_t target = job.completed_before;
    for (int64_t p = 0; p < job.num_phases; ++p) {
        target += static_cast<uint64_t>(job.phases[p].num_chunks);
        if (completed_.load(std::memory_order_acquire) >= target) continue;  // We are late.
        run_phase(job.phases[p], job.first_sequence + static_cast<uint64_t>(p), worker, completed_);
        Backoff backoff;
        while (completed_.load(std::memory_order_acquire) < target) backoff.pause();
    }
}

void Team::run_phase(const Phase& phase, uint64_t sequence, const Worker& worker,
                     std::atomic<uint64_t>& completed) {
    uint64_t done = 0;
    for (int i = 0; i < num_threads_; ++i) {
        const int owner = (worker.thread + i) % num_threads_;
        const int64_t begin = range_begin(phase.num_chunks, owner, num_threads_);
        const int64_t end = range_begin(phase.num_chunks, owner + 1, num_threads_);
        auto& slot = slots_[static_cast<size_t>(owner)].next;
        for (int64_t chunk; (chunk = claim(slot, sequence, begin, end)) >= 0; ++done)
            run_chunk(phase, chunk, worker);
    }
    if (done) completed.fetch_add(done, std::memory_order_acq_rel);
}

void Team::help(int thread) {
    std::vector<char> local;
    auto& present = presence_[static_cast<size_t>(thread)].job;
    uint64_t seen = 0;
    while ((seen = wait_for_job(seen)) != 0) {
        present.store(seen, std::memory_order_seq_cst);
        // The caller reuses a descriptor only after it saw no thread in its job.
        if (job_.load(std::memory_order_seq_cst) == seen) work(ring_[seen % kRing], thread, local);
        present.store(0, std::memory_order_release);
    }
}

// Returns the number of a job newer than `seen`, or 0 when the team closes.
uint64_t Team::wait_for_job(uint64_t seen) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::microseconds(spin_us_);
    for (int i = 0;; ++i) {
        const uint64_t number = job_.load(std::memory_order_acquire);
        if (number != seen) return number;
        if (i % 64 == 63 && Clock::now() >= until) break;
        pause_cpu();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] {
        return job_.load(std::memory_order_seq_cst) != seen || closing_.load();
    });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    const uint64_t number = job_.load(std::memory_order_acquire);
    return number != seen ? number : 0;
}

void Team::wait_until_left(uint64_t job) {
    for (auto& presence : presence_) {
        Backoff backoff;
        for (;;) {
            const uint64_t at = presence.job.load(std::memory_order_seq_cst);
            if (at == 0 || at > job) break;
            backoff.pause();
        }
    }
}

void Team::bind(const int64_t* cpus, int64_t count) {
#if defined(__linux__)
    for (size_t i = 0; i < helpers_.size() && static_cast<int64_t>(i) + 1 < count; ++i) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(static_cast<size_t>(cpus[i + 1]), &set);
        pthread_setaffinity_np(helpers_[i].native_handle(), sizeof(set), &set);  // A wish.
    }
#else
    (void)cpus, (void)count;
#endif
}

void Team::make_room() {
    const uint64_t number = job_.load(std::memory_order_relaxed) + 1;
    if (number > kRing) wait_until_left(number - kRing);
}

void Team::settle() {
    if (num_threads_ == 1) return;
    // A helper that has just seen the last job could still enter it: let there be an empty one.
    publish(nullptr, 0, nullptr, 0);
    wait_until_left(job_.load(std::memory_order_relaxed) - 1);
}

}  // namespace headstock
