// Entries that stand for stretches of tokens: making them, and attention to them behind a window.
#include "compressed.h"

#include "gathered.h"
#include "narrow.h"
#include "norm_row.h"
#include "rotate.h"

namespace headstock {
namespace {

int64_t row_bytes(int64_t size, int64_t element) { return size * (element == 0 ? 4 : 2); }

void run_wait(const void* untyped, int64_t token, const Worker&) {
    const auto& args = *static_cast<const CompressArgs*>(untyped);
    const int64_t size = 2 * args.width;
    store_row(args.pages + args.slots[token] * row_bytes(size, args.element), args.element,
              args.waiting + token * args.waiting_stride, size);
}

// Rotates the last features of a head by their angles, which are `cos_sin`, or back.
void turn_last(float* head, int64_t size, const float* cos_sin, int64_t rotary_size,
               bool is_inverse) {
    float* x = head + size - rotary_size;
    const int64_t half = rotary_size / 2;
    const float* sines = cos_sin + half;
    for (int64_t i = 0; i < half; ++i) {
        const float sine = is_inverse ? -sines[i] : sines[i];
        const float first = x[2 * i], second = x[2 * i + 1];
        x[2 * i] = first * cos_sin[i] - second * sine;
        x[2 * i + 1] = second * cos_sin[i] + first * sine;
    }
}

// Keys and gates of the tokens that an entry is made of, widened.
class Stretch {
public:
    Stretch(const CompressArgs& args, char* memory)
        : args_(args), rows_(reinterpret_cast<float*>(memory)) {}

    static size_t bytes(const CompressArgs& args) {
        const int64_t tokens = args.entries.rate * (args.width / args.entries.head_dim);
        return static_cast<size_t>(tokens * 2 * args.width + args.entries.head_dim) * sizeof(float);
    }

    // Reads the tokens up to the one at `place` of a row, as many as there are.
    void read(int64_t row, int64_t place) {
        const int64_t page_size = args_.entries.page_size, size = 2 * args_.width;
        const int64_t count = args_.entries.rate * (args_.width / args_.entries.head_dim);
        first_ = max64(0, count - 1 - place);
        count_ = count;
        const int32_t* table = args_.table + row * args_.pages_per_row;
        for (int64_t i = first_; i < count; ++i) {
            const int64_t at = place - count + 1 + i;
            const int64_t slot = table[at / page_size] * page_size + at % page_size;
            load_row(args_.pages + slot * row_bytes(size, args_.element), args_.element, size,
                     rows_ + i * size);
        }
    }

    // y = the sum of keys, each feature weighed by a softmax over its gates. [D]
    void sum(float* y) const {
        const int64_t size = args_.entries.head_dim;
        for (int64_t d = 0; d < size; d += 8) {
            __m256 largest = _mm256_set1_ps(-INFINITY);
            for (int64_t i = first_; i < count_; ++i) largest = _mm256_max_ps(largest, gate(i, d));
            __m256 sum = _mm256_setzero_ps(), whole = _mm256_setzero_ps();
            for (int64_t i = first_; i < count_; ++i) {
                const __m256 weight = exp8(_mm256_sub_ps(gate(i, d), largest));
                sum = _mm256_fmadd_ps(weight, _mm256_loadu_ps(key(i) + d), sum);
                whole = _mm256_add_ps(whole, weight);
            }
            _mm256_storeu_ps(y + d, _mm256_div_ps(sum, whole));
        }
    }

    // Where an entry is made.
    float* entry() const { return rows_ + count_ * 2 * args_.width; }

private:
    // Tokens before an entry's own count with their first features, its own with their last.
    int64_t half(int64_t i) const {
        return i >= count_ - args_.entries.rate ? args_.width - args_.entries.head_dim : 0;
    }
    const float* key(int64_t i) const { return rows_ + i * 2 * args_.width + half(i); }
    __m256 gate(int64_t i, int64_t d) const {
        const float* bias = args_.bias + i % args_.entries.rate * args_.width + half(i);
        return _mm256_add_ps(_mm256_loadu_ps(key(i) + args_.width + d), _mm256_loadu_ps(bias + d));
    }

    const CompressArgs& args_;
    float* const rows_;
    int64_t first_ = 0;
    int64_t count_ = 0;
};

void run_compress(const void* untyped, int64_t token, const Worker& worker) {
    const auto& args = *static_cast<const CompressArgs*>(untyped);
    const IndexPages& pages = args.entries;
    const int64_t place = args.positions[token], size = pages.head_dim;
    if (token >= args.counts[1] || (place + 1) % pages.rate != 0) return;
    Stretch stretch(args, worker.local);
    stretch.read(args.row_of_token[token], place);
    float* entry = stretch.entry();
    stretch.sum(entry);
    norm_row(entry, args.norm, static_cast<float>(args.eps), entry, size);
    const int64_t first = place + 1 - pages.rate;
    turn_last(entry, size, args.cos_sin + first * args.rotary_size, args.rotary_size, false);
    const int64_t slot = args.entry_slots[token];
    const int64_t at = slot / pages.page_size * pages.keys_a_page() +
                       slot % pages.page_size / pages.rate;
    store_row(pages.at(at), pages.element, entry, size);
}

// The first parts are of the window, the others of entries.
struct WindowAndEntries {
    using Args = AttendEntriesArgs;

    static int64_t window_parts(const Args& args) { return (args.window + kSplit - 1) / kSplit; }

    static GatheredShape shape(const Args& args) {
        return {args.tokens, args.num_heads, heads_together(args.num_heads),
                window_parts(args) + (args.most + kSplit - 1) / kSplit, args.head_dim,
                args.head_dim, false};
    }
    static bool is_real(const Args& args, int64_t token) { return args.rows.is_real(token); }
    static const float* sink(const Args& args, int64_t head) { return args.sinks + head; }
    static float* output(const Args& args, int64_t token, int64_t head) {
        return args.y + (token * args.num_heads + head) * args.head_dim;
    }

    static void load(const Args& args, int64_t token, int64_t head, GatheredTile& tile) {
        tile.load_queries(args.q + (token * args.num_heads + head) * args.head_dim, args.head_dim,
                          static_cast<float>(args.scale));
    }

    static void attend(const Args& args, int64_t token, int64_t, int64_t part, GatheredTile& tile) {
        const int64_t windows = window_parts(args);
        if (part < windows) attend_window(args, token, part * kSplit, tile);
        else attend_entries(args, token, (part - windows) * kSplit, tile);
    }

private:
    static void attend_window(const Args& args, int64_t token, int64_t begin, GatheredTile& tile) {
        const int64_t seen = args.rows.seen(token), size = args.head_dim;
        const int64_t first = max64(0, seen - args.window) + begin;
        const int64_t count = min64(kSplit, seen - first);
        const int32_t* table = args.rows.pages(token);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = first + i;
            const int64_t slot = table[at / args.page_size] * args.page_size + at % args.page_size;
            load_row(args.data + slot * row_bytes(size, args.element), args.element, size,
                     tile.keys + i * size);
        }
        tile.attend(max64(0, count));
    }

    static void attend_entries(const Args& args, int64_t token, int64_t begin, GatheredTile& tile) {
        const IndexPages pages{args.entries, args.entry_element, args.page_size, args.rate,
                               args.head_dim};
        const int32_t* table =
            args.entry_table + args.rows.row_of_token[token] * args.entry_pages_per_row;
        const int64_t there = args.rows.seen(token) / args.rate;
        const int64_t end = min64(begin + kSplit, args.most);
        int64_t count = 0;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t entry = args.chosen ? args.chosen[token * args.most + i] : i;
            if (entry < 0 || entry >= there) continue;
            load_row(pages.at(pages.slot(table, entry)), pages.element, args.head_dim,
                     tile.keys + count++ * args.head_dim);
        }
        tile.attend(count);
    }
};

void run_rotate_last(const void* untyped, int64_t token, const Worker&) {
    const auto& args = *static_cast<const RotateLastArgs*>(untyped);
    const int64_t first = token * args.num_heads * args.head_dim;
    std::memcpy(args.y + first, args.x + first,
                static_cast<size_t>(args.num_heads * args.head_dim) * sizeof(float));
    const float* cos_sin = args.cos_sin + args.positions[token] * args.rotary_size;
    for (int64_t h = 0; h < args.num_heads; ++h)
        turn_last(args.y + first + h * args.head_dim, args.head_dim, cos_sin, args.rotary_size,
                  args.is_inverse != 0);
}

}  // namespace

void plan_compress(const int64_t* untyped, PhaseList& list) {
    const auto& args = as<CompressArgs>(untyped);
    list.need_local(Stretch::bytes(args));
    list.add(run_wait, untyped, args.tokens);
    list.add(run_compress, untyped, args.tokens);
}

void plan_attend_entries(const int64_t* args, PhaseList& list) {
    GatheredPhases<WindowAndEntries>::plan(args, list);
}

void plan_rotate_last(const int64_t* args, PhaseList& list) {
    list.add(run_rotate_last, args, as<RotateLastArgs>(args).tokens);
}

}  // namespace headstock
