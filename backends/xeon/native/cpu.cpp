#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headstock {

namespace {

struct Registers { unsigned a = 0, b = 0, c = 0, d = 0; };

Registers query(unsigned leaf, unsigned subleaf) {
    Registers r;
    if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
    return r;
}

bool has_bit(unsigned word, int bit) { return (word >> bit) & 1; }

// Register states that the system saves on a context switch (XCR0).
uint64_t saved_states() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
}

// Asks Linux for the tile registers; without this the first tile instruction is a signal.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

int64_t detect_features() {
    const Registers one = query(1, 0), seven = query(7, 0), seven1 = query(7, 1);
    constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
    if (!has_bit(one.c, 27)) return 0;  // OSXSAVE: xgetbv is there.
    const uint64_t saved = saved_states();
    int64_t features = 0;
    const bool has_fma_f16c = has_bit(one.c, 12) && has_bit(one.c, 29);
    if ((saved & kYmm) != kYmm || !has_bit(seven.b, 5) || !has_fma_f16c) return 0;
    features |= kAvx2;
    const bool has_512 = has_bit(seven.b, 16) && has_bit(seven.b, 17) && has_bit(seven.b, 30) &&
                         has_bit(seven.b, 31);
    if ((saved & kZmm) != kZmm || !has_512) return features;
    features |= kAvx512;
    if (has_bit(seven.c, 11)) features |= kAvx512Vnni;
    if (has_bit(seven1.a, 5)) features |= kAvx512Bf16;
    if ((saved & kTiles) != kTiles || !has_bit(seven.d, 24) || !may_use_tiles()) return features;
    if (has_bit(seven.d, 25)) features |= kAmxInt8;
    if (has_bit(seven.d, 22)) features |= kAmxBf16;
    return features;
}

}  // namespace headstock

#else

namespace headstock {
int64_t detect_features() { return 0; }
}  // namespace headstock

#endif
