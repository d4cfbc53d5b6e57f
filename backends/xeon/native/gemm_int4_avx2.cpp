// Int4 weights with a scale and a minimum for every 32 input features, 8-bit activations.
//
// A panel is a sequence of blocks, one a group: 16 float16 scales, 16 float16 minima, then four
// times 64 bytes, [16 output features][4 input features]: low nibbles hold features 4 j + i, high
// nibbles 16 + 4 j + i. vpmaddubsw adds pairs of products into 16 bits; over a group that is at
// most 15 * 127 * 32 / 2 = 30480, so nothing saturates and one vpmaddwd a group widens.
#include "gemm.h"
#include "quantise.h"
#include "vector_avx2.h"
#include "weight_kernels.h"

namespace headstock {
namespace {

constexpr int64_t kGroup = 32;
constexpr int64_t kHeader = 4 * kPanel;  // Scales and minima.
constexpr int64_t kBlock = kHeader + kGroup / 2 * kPanel;

HS_INLINE __m256i four_of(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, 4);
    return _mm256_set1_epi32(four);
}

struct Int4Micro {
    static constexpr int kRows = 4;

    template <int R>
    HS_INLINE void add_dots(const char* block, const int8_t* q, int64_t row_size,
                                __m256i (*dot)[2]) {
        const __m256i nibble = _mm256_set1_epi8(15);
        unrolled<4>([&](auto j) {
            const __m256i b0 = _mm256_loadu_si256((const __m256i*)(block + kHeader + j * 64));
            const __m256i b1 = _mm256_loadu_si256((const __m256i*)(block + kHeader + j * 64 + 32));
            _mm_prefetch(block + 1536 + j * 80, _MM_HINT_T0);
            const __m256i low0 = _mm256_and_si256(b0, nibble), low1 = _mm256_and_si256(b1, nibble);
            const __m256i high0 = _mm256_and_si256(_mm256_srli_epi16(b0, 4), nibble);
            const __m256i high1 = _mm256_and_si256(_mm256_srli_epi16(b1, 4), nibble);
            unrolled<R>([&](auto r) {
                const int8_t* x = q + r * row_size + 4 * j;
                const __m256i a = four_of(x);
                dot[r][0] = _mm256_add_epi16(dot[r][0], _mm256_maddubs_epi16(low0, a));
                dot[r][1] = _mm256_add_epi16(dot[r][1], _mm256_maddubs_epi16(low1, a));
                const __m256i c = four_of(x + 16);
                dot[r][0] = _mm256_add_epi16(dot[r][0], _mm256_maddubs_epi16(high0, c));
                dot[r][1] = _mm256_add_epi16(dot[r][1], _mm256_maddubs_epi16(high1, c));
            });
        });
    }

    // Adds the products of one group with the rows at `x`, `row_size` and `num_groups` apart.
    template <int R>
    HS_INLINE void add_group(const char* block, const Rounded8& x, int64_t row_size,
                             int64_t num_groups, __m256 (*sum)[2]) {
        const __m256i one = _mm256_set1_epi16(1);
        __m256i dot[R][2];
        unrolled<R>([&](auto r) { dot[r][0] = dot[r][1] = _mm256_setzero_si256(); });
        add_dots<R>(block, x.values, row_size, dot);
        const auto* halves = reinterpret_cast<const uint16_t*>(block);
        unrolled<2>([&](auto h) {
            const __m256 s = load_half(halves + 8 * h);
            const __m256 minimum = load_half(halves + kPanel + 8 * h);
            unrolled<R>([&](auto r) {
                const int64_t at = r * num_groups;
                const __m256 f = _mm256_cvtepi32_ps(_mm256_madd_epi16(dot[r][h], one));
                const __m256 factor = _mm256_mul_ps(s, _mm256_set1_ps(x.scales[at]));
                sum[r][h] = _mm256_fmadd_ps(f, factor, sum[r][h]);
                sum[r][h] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(x.sums[at]), sum[r][h]);
            });
        });
    }

    // Adds a row's rests, each row by itself: neighbours seldom have theirs in the same groups.
    static void add_rests(const Quantised8& x, const char* panel, int64_t row, float* out) {
        __m256 sum[1][2] = {{_mm256_load_ps(out), _mm256_load_ps(out + 8)}};
        for_each_rest(x, row, [&](int64_t g, const Rounded8& rest) __attribute__((always_inline)) {
            add_group<1>(panel + g * kBlock, rest, 0, 0, sum);
        });
        _mm256_store_ps(out, sum[0][0]);
        _mm256_store_ps(out + 8, sum[0][1]);
    }

    template <int R>
    static void multiply(const Weight&, const char* panel, const LinearArgs& args,
                         const char* shared, int64_t row, float (*out)[kPanel]) {
        const Quantised8 x = quantised8_at(args, shared);
        const Rounded8 rows = from_row(x, x.whole, row);
        __m256 sum[R][2];
        unrolled<R>([&](auto r) { sum[r][0] = sum[r][1] = _mm256_setzero_ps(); });
        for (int64_t g = 0; g < x.num_groups; ++g)
            add_group<R>(panel + g * kBlock, from_group(rows, g), x.row_size, x.num_groups, sum);
        unrolled<R>([&](auto r) {
            _mm256_store_ps(out[r], sum[r][0]);
            _mm256_store_ps(out[r] + 8, sum[r][1]);
        });
        for (int r = 0; r < R; ++r) add_rests(x, panel, row + r, out[r]);
    }
};

int64_t panel_bytes(int64_t in_features, int64_t) { return in_features / kGroup * kBlock; }

// Where input feature `k` of a group lies: its byte within a lane's column, and its shift.
struct Place { int64_t byte; int shift; };

inline Place place_of(int64_t k, int64_t lane) {
    const int64_t within = k % 16;
    return {kHeader + within / 4 * 64 + lane * 4 + within % 4, k < 16 ? 0 : 4};
}

void store_half(char* to, float value) {
    const uint16_t half = float_to_half(value);
    std::memcpy(to, &half, 2);
}

float read_half(const char* from) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    return half_to_float(half);
}

void pack_row(Weight& weight, const Canonical& from, int64_t i) {
    const int64_t row = from.row_begin + i, lane = row % kPanel;
    const auto* source = static_cast<const uint8_t*>(from.weight) + i * from.stride;
    const int64_t source_groups = weight.in_features / from.group;
    const float* scale = from.scale + i * source_groups;
    const float* minimum = from.minimum + i * source_groups;
    const float factor = half_factor(largest_scale(weight, from, i));
    weight.row_factor[row] = factor;
    char* block = weight.panel(row / kPanel);
    for (int64_t g = 0; g < weight.num_groups(); ++g, block += kBlock, source += kGroup / 2) {
        const int64_t at = g * kGroup / from.group;
        store_half(block + 2 * lane, scale[at] / factor);
        store_half(block + 2 * kPanel + 2 * lane, minimum[at] / factor);
        for (int64_t k = 0; k < 16; ++k) {
            const int low = source[k / 2] >> (k % 2 * 4) & 15;
            const int high = source[8 + k / 2] >> (k % 2 * 4) & 15;
            block[place_of(k, lane).byte] = static_cast<char>(low | high << 4);
        }
    }
}

void read_row(const Weight& weight, int64_t row, float* into) {
    const int64_t lane = row % kPanel;
    const char* block = weight.panel(row / kPanel);
    for (int64_t g = 0; g < weight.num_groups(); ++g, block += kBlock, into += kGroup) {
        const float scale = read_half(block + 2 * lane) * weight.row_factor[row];
        const float minimum = read_half(block + 2 * kPanel + 2 * lane) * weight.row_factor[row];
        for (int64_t k = 0; k < kGroup; ++k) {
            const Place place = place_of(k, lane);
            const int q = static_cast<uint8_t>(block[place.byte]) >> place.shift & 15;
            into[k] = scale * static_cast<float>(q) + minimum;
        }
    }
}

}  // namespace

const PanelLayout kInt4Panels = {panel_bytes, pack_row, read_row};
const WeightKernel kInt4Avx2 = {"int4-avx2", &kInt4Panels, plan_quantise8,
                                multiply<Int4Micro>};

}  // namespace headstock
