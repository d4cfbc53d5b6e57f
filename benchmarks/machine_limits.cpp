// What this processor reaches at most: bytes read from memory, and operations in registers.
//
//     machine_limits THREADS
//
// Prints one JSON object, of all threads together: bytes a second, in the best and in the median
// of many passes, which lie apart where others use the machine too; and operations a second (a
// multiply and an add are two), in the best pass, of the three ways to multiply that the AVX2
// kernels use.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBytes = size_t{128} << 20;  // Of each thread: more than the caches hold.
constexpr int kPasses = 24;
constexpr int kRepeats = 200000;
constexpr int kChains = 10;

// Where threads meet.
class Barrier {
public:
    explicit Barrier(int count) : count_(count) {}
    void wait() {
        const int round = round_.load();
        if (arrived_.fetch_add(1) + 1 == count_) {
            arrived_.store(0);
            round_.fetch_add(1);
        } else {
            while (round_.load() == round) _mm_pause();
        }
    }

private:
    const int count_;
    std::atomic<int> arrived_{0}, round_{0};
};

volatile long long sink;  // Results go here, so that they are computed.

void read_all(const char* data) {
    __m256i sum[4] = {};
    for (size_t i = 0; i < kBytes; i += 128)
        for (int k = 0; k < 4; ++k)
            sum[k] = _mm256_xor_si256(
                sum[k], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + 32 * k)));
    const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]),
                                         _mm256_xor_si256(sum[2], sum[3]));
    sink = _mm256_extract_epi64(all, 0);
}

// Ten independent sums, in registers: enough to hide how long an instruction takes.
#define HS_EACH(X) X("0") X("1") X("2") X("3") X("4") X("5") X("6") X("7") X("8") X("9")
#define HS_FMA(N) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" N "\n"
#define HS_BYTES(N) "vpmaddubsw %%ymm14, %%ymm15, %%ymm13\nvpaddw %%ymm13, %%ymm" N ", %%ymm" N "\n"
#define HS_WORDS(N) "vpmaddwd %%ymm14, %%ymm15, %%ymm13\nvpaddd %%ymm13, %%ymm" N ", %%ymm" N "\n"
#define HS_CLOBBER(N) "ymm" N,
#define HS_REPEAT(X) \
    __asm__ volatile("vzeroall" ::: HS_EACH(HS_CLOBBER) "ymm13", "ymm14", "ymm15"); \
    for (int i = 0; i < kRepeats; ++i) \
        __asm__ volatile(HS_EACH(X) ::: HS_EACH(HS_CLOBBER) "ymm13", "ymm14", "ymm15")

void multiply_floats(int) { HS_REPEAT(HS_FMA); }
void multiply_bytes(int) { HS_REPEAT(HS_BYTES); }
void multiply_words(int) { HS_REPEAT(HS_WORDS); }

// Returns the times that all threads need for `work` at once, shortest first. Seconds.
std::vector<double> times(int threads, const std::function<void(int)>& work) {
    Barrier barrier(threads);
    std::vector<double> found;
    auto run = [&](int thread) {
        for (int pass = 0; pass < kPasses; ++pass) {
            barrier.wait();
            const auto begin = std::chrono::steady_clock::now();
            work(thread);
            barrier.wait();
            const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
            if (thread == 0) found.push_back(took.count());
        }
    };
    std::vector<std::thread> helpers;
    for (int t = 1; t < threads; ++t) helpers.emplace_back(run, t);
    run(0);
    for (auto& helper : helpers) helper.join();
    std::sort(found.begin(), found.end());
    return found;
}

}  // namespace

int main(int count, char** arguments) {
    const int threads = count > 1 ? std::max(1, std::atoi(arguments[1])) : 1;
    std::vector<char*> data;
    for (int t = 0; t < threads; ++t) {
        void* block = std::aligned_alloc(size_t{2} << 20, kBytes);
        if (!block) return 1;
        madvise(block, kBytes, MADV_HUGEPAGE);
        std::memset(block, 1, kBytes);
        data.push_back(static_cast<char*>(block));
    }
    const auto reads = times(threads, [&](int t) { read_all(data[static_cast<size_t>(t)]); });
    const double fma_s = times(threads, multiply_floats).front();
    const double bytes_s = times(threads, multiply_bytes).front();
    const double words_s = times(threads, multiply_words).front();
    const double calls = double(threads) * kRepeats * kChains;
    const double bytes = double(threads) * double(kBytes);
    std::printf("{\"read_bytes_s\": %.4g, \"median_read_bytes_s\": %.4g, \"fma_f32_ops_s\": %.4g, "
                "\"madd_8bit_ops_s\": %.4g, \"madd_16bit_ops_s\": %.4g}\n",
                bytes / reads.front(), bytes / reads[reads.size() / 2], calls * 16 / fma_s,
                calls * 64 / bytes_s, calls * 32 / words_s);
    for (char* block : data) std::free(block);
    return 0;
}
