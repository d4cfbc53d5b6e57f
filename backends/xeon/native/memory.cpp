#include "memory.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <cstdlib>
#include <cstring>

namespace headstock {

#if defined(__linux__)

namespace {

constexpr size_t kHuge = size_t{2} << 20;

constexpr size_t kSmall = 4096;

// Mapped length: whole small pages. What is over a multiple of huge pages stays in small ones, so
// that a cache which ends just past a huge page does not take all of the next.
size_t mapped(size_t bytes) { return (bytes + kSmall - 1) / kSmall * kSmall; }

}  // namespace

void* allocate_pages(size_t bytes) {
    const size_t length = mapped(bytes ? bytes : 1);
    const size_t slack = length >= kHuge ? kHuge : 0;
    void* got = mmap(nullptr, length + slack, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) return nullptr;
    auto address = reinterpret_cast<uintptr_t>(got);
    if (slack) {
        const uintptr_t start = (address + kHuge - 1) / kHuge * kHuge;
        if (start > address) munmap(got, start - address);
        const size_t tail = address + length + slack - (start + length);
        if (tail) munmap(reinterpret_cast<void*>(start + length), tail);
        address = start;
        madvise(reinterpret_cast<void*>(address), length, MADV_HUGEPAGE);  // A wish: may fail.
    }
    return reinterpret_cast<void*>(address);
}

void free_pages(void* memory, size_t bytes) {
    if (memory) munmap(memory, mapped(bytes ? bytes : 1));
}

#else

void* allocate_pages(size_t bytes) {
    const size_t length = (bytes + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, length ? length : 64);
    if (memory) std::memset(memory, 0, length ? length : 64);
    return memory;
}

void free_pages(void* memory, size_t) { std::free(memory); }

#endif

}  // namespace headstock
