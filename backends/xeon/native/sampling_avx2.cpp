// From logits to token ids. A row's result depends on that row alone.
#include <algorithm>

#include "kernels.h"
#include "vector_avx2.h"

namespace headstock {
namespace {

// Returns the place of the first value that `is_wanted` (8 lanes to a mask) takes, or -1.
template <class Wanted>
inline int64_t find_first(const float* x, int64_t size, Wanted is_wanted) {
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const int lanes = _mm256_movemask_ps(is_wanted(_mm256_loadu_ps(x + i)));
        if (lanes) return i + __builtin_ctz(static_cast<unsigned>(lanes));
    }
    if (i == size) return -1;
    const __m256i mask = first_lanes(size - i);
    const int lanes = _mm256_movemask_ps(
        _mm256_and_ps(is_wanted(_mm256_maskload_ps(x + i, mask)), _mm256_castsi256_ps(mask)));
    return lanes ? i + __builtin_ctz(static_cast<unsigned>(lanes)) : -1;
}

// Returns the largest value, and whether there is one that is no number.
inline float largest_of(const float* x, int64_t size, bool* has_nan) {
    __m256 best = _mm256_set1_ps(-INFINITY), unordered = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        best = _mm256_max_ps(v, best);
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    float largest = max8(best);
    bool is_unordered = _mm256_movemask_ps(unordered) != 0;
    for (; i < size; ++i) {
        largest = x[i] > largest ? x[i] : largest;
        is_unordered |= x[i] != x[i];
    }
    *has_nan = is_unordered;
    return largest;
}

// Returns the place of the largest value, the first of equals; one that is no number is larger.
int64_t argmax_row(const float* x, int64_t size) {
    bool has_nan;
    const __m256 wanted = _mm256_set1_ps(largest_of(x, size, &has_nan));
    const int64_t found =
        has_nan ? find_first(x, size, [](__m256 v) { return _mm256_cmp_ps(v, v, _CMP_UNORD_Q); })
                : find_first(x, size, [=](__m256 v) { return _mm256_cmp_ps(v, wanted, _CMP_EQ_OQ); });
    return found < 0 ? 0 : found;
}

void run_argmax(const void* untyped, int64_t row, const Worker&) {
    const auto& args = *static_cast<const ArgmaxArgs*>(untyped);
    args.ids[row] = argmax_row(args.logits + row * args.stride, args.size);
}

// Sum of e^(x - largest): blocks in float32, their sums in float64.
double sum_of_weights(const float* x, int64_t size, float largest) {
    const __m256 shift = _mm256_set1_ps(largest);
    double total = 0;
    for (int64_t begin = 0; begin < size; begin += 1024) {
        const int64_t end = min64(begin + 1024, size);
        __m256 sum = _mm256_setzero_ps();
        for (int64_t i = begin; i < end; i += 8) {
            const __m256i mask = first_lanes(min64(8, end - i));
            const __m256 w = exp8(_mm256_sub_ps(_mm256_maskload_ps(x + i, mask), shift));
            sum = _mm256_add_ps(sum, _mm256_and_ps(w, _mm256_castsi256_ps(mask)));
        }
        total += sum8(sum);
    }
    return total;
}

// Finds the k highest values, best first; of equals the lower id. `values` and `ids` have k places.
void find_likeliest(const float* x, int64_t size, int64_t k, float* values, int64_t* ids) {
    int64_t count = 0;
    const auto insert = [&](int64_t id) {
        int64_t at = count < k ? count++ : k - 1;
        for (; at > 0 && !(values[at - 1] >= x[id]); --at) {
            values[at] = values[at - 1];
            ids[at] = ids[at - 1];
        }
        values[at] = x[id];
        ids[at] = id;
    };
    const int64_t begin = min64(k, size);
    for (int64_t i = 0; i < begin; ++i) insert(i);
    for (int64_t i = begin; i < size && k > 0;) {
        const __m256 worst = _mm256_set1_ps(values[k - 1]);
        const int64_t found = find_first(x + i, size - i, [=](__m256 v) {
            return _mm256_cmp_ps(v, worst, _CMP_GT_OQ);
        });
        if (found < 0) return;
        insert(i + found);
        i += found + 1;
    }
}

void run_logprobs(const void* untyped, int64_t row, const Worker&) {
    const auto& args = *static_cast<const LogprobArgs*>(untyped);
    const float* x = args.logits + row * args.stride;
    bool has_nan;
    const float largest = largest_of(x, args.size, &has_nan);
    const double norm = has_nan || !std::isfinite(largest)
        ? NAN : largest + std::log(sum_of_weights(x, args.size, largest));
    const auto of = [=](float logit) { return static_cast<float>(logit - norm); };
    float* top = args.top + row * args.k;
    find_likeliest(x, args.size, args.k, top, args.top_ids + row * args.k);
    for (int64_t i = 0; i < args.k; ++i) top[i] = of(top[i]);
    args.chosen[row] = of(x[args.ids[row]]);
    for (int64_t i = row * args.num_asked; i < (row + 1) * args.num_asked; ++i)
        args.of_asked[i] = of(x[args.asked[i]]);
}

void run_penalise(const void* untyped, int64_t row, const Worker&) {
    const auto& args = *static_cast<const PenaliseArgs*>(untyped);
    float* logits = args.logits + row * args.stride;
    const int32_t* counts = args.counts + row * args.size;
    const uint8_t* is_prompt = args.is_prompt + row * args.size;
    const float repetition = args.repetition[row];
    for (int64_t i = 0; i < args.size; ++i) {
        if (counts[i] == 0 && !is_prompt[i]) continue;
        const float x = logits[i] > 0 ? logits[i] / repetition : logits[i] * repetition;
        const float present = counts[i] > 0 ? args.presence[row] : 0.0f;
        logits[i] = x - static_cast<float>(counts[i]) * args.frequency[row] - present;
    }
}

struct Words { uint32_t high, low; };

inline Words multiply(uint32_t a, uint32_t b) {
    const uint64_t product = uint64_t{a} * b;
    return {static_cast<uint32_t>(product >> 32), static_cast<uint32_t>(product)};
}

// A number in [0, 1) for (seed, index): Philox-4x32-10, upper 24 bits of the first word.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
float uniform(int64_t seed, int64_t index) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
    uint32_t c2 = 0, c3 = 0;
    for (int round = 0; round < 10; ++round) {
        const Words first = multiply(c0, 0xD2511F53), second = multiply(c2, 0xCD9E8D57);
        c0 = second.high ^ c1 ^ key0;
        c1 = second.low;
        c2 = first.high ^ c3 ^ key1;
        c3 = first.low;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return static_cast<float>(c0 >> 8) * 0x1p-24f;
}

struct Candidate {
    float weight;  // e^((logit - largest) / temperature): 1 for the likeliest.
    int32_t id;
};

// One row to draw from.
class Row {
public:
    Row(const DrawArgs& args, int64_t row, char* memory)
        : x_(args.logits + row * args.stride), size_(args.size),
          temperature_(args.temperature[row]), top_p_(args.top_p[row]), min_p_(args.min_p[row]),
          top_k_(args.top_k[row] < 1 ? size_ : min64(args.top_k[row], size_)),
          uniform_(uniform(args.seeds[row], args.indexes[row])),
          weights_(reinterpret_cast<float*>(memory)),
          candidates_(reinterpret_cast<Candidate*>(memory + round_up(size_ * 4, 64))) {}

    static size_t bytes(int64_t size) {
        return static_cast<size_t>(round_up(size * 4, 64)) +
               static_cast<size_t>(size) * sizeof(Candidate);
    }

    int64_t draw() {
        bool has_nan;
        const float largest = largest_of(x_, size_, &has_nan);
        if (temperature_ < 1e-6f || has_nan || !std::isfinite(largest)) return argmax_row(x_, size_);
        weigh(largest);
        if (top_k_ >= size_ && top_p_ >= 1 && min_p_ <= 0) return draw_from_all();
        return draw_from(keep_likeliest());
    }

private:
    // Fills weights_ and total_.
    void weigh(float largest) {
        const __m256 shift = _mm256_set1_ps(largest / temperature_);
        const __m256 temperature = _mm256_set1_ps(temperature_);
        double total = 0;
        for (int64_t i = 0; i < size_; i += 8) {
            const __m256i mask = first_lanes(size_ - i);
            const __m256 x = _mm256_div_ps(_mm256_maskload_ps(x_ + i, mask), temperature);
            const __m256 w = _mm256_and_ps(exp8(_mm256_sub_ps(x, shift)), _mm256_castsi256_ps(mask));
            _mm256_maskstore_ps(weights_ + i, mask, w);
            total += static_cast<double>(sum8(w));
        }
        total_ = total;
    }

    int64_t draw_from_all() const {
        const double threshold = static_cast<double>(uniform_) * total_;
        double sum = 0;
        int64_t last = 0;
        for (int64_t i = 0; i < size_; ++i) {
            if (weights_[i] <= 0) continue;
            sum += static_cast<double>(weights_[i]);
            if (sum > threshold) return i;
            last = i;
        }
        return last;
    }

    // Leaves the ids that pass the filters in candidates_, in id order, and returns how many.
    int64_t keep_likeliest() {
        // Few ids matter, nearly always: look among the likely ones first.
        int64_t count = 0;
        for (const float cut : {1e-3f, 1e-6f, 0.0f}) {
            count = collect(cut > min_p_ ? cut : min_p_);
            if (cut <= min_p_ || cut == 0.0f || is_enough(count)) break;
        }
        std::sort(candidates_, candidates_ + count, [](const Candidate& a, const Candidate& b) {
            return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
        });
        const float kth = top_k_ <= count ? candidates_[top_k_ - 1].weight : 0.0f;
        const double most = static_cast<double>(top_p_) * total_;
        double before = 0;
        int64_t kept = 0;
        while (kept < count && candidates_[kept].weight >= kth && (before < most || kept == 0))
            before += static_cast<double>(candidates_[kept++].weight);
        std::sort(candidates_, candidates_ + kept,
                  [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
        return kept;
    }

    int64_t collect(float cut) {
        int64_t count = 0;
        for (int64_t i = 0; i < size_; ++i) {
            candidates_[count] = {weights_[i], static_cast<int32_t>(i)};
            count += weights_[i] >= cut && weights_[i] > 0;
        }
        return count;
    }

    // Whether no id beyond the candidates can pass the filters.
    bool is_enough(int64_t count) const {
        if (count >= top_k_) return true;
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(candidates_[i].weight);
        return sum >= static_cast<double>(top_p_) * total_;
    }

    int64_t draw_from(int64_t count) const {
        double total = 0;
        for (int64_t i = 0; i < count; ++i) total += static_cast<double>(candidates_[i].weight);
        const double threshold = static_cast<double>(uniform_) * total;
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) {
            sum += static_cast<double>(candidates_[i].weight);
            if (sum > threshold) return candidates_[i].id;
        }
        return candidates_[count - 1].id;
    }

    const float* x_;
    const int64_t size_;
    const float temperature_, top_p_, min_p_;
    const int64_t top_k_;
    const float uniform_;
    float* weights_;
    Candidate* candidates_;
    double total_ = 0;
};

void run_draw(const void* untyped, int64_t row, const Worker& worker) {
    const auto& args = *static_cast<const DrawArgs*>(untyped);
    args.ids[row] = Row(args, row, worker.local).draw();
}

}  // namespace

void plan_logprobs(const int64_t* args, PhaseList& list) {
    list.add(run_logprobs, args, as<LogprobArgs>(args).rows);
}

void plan_argmax(const int64_t* args, PhaseList& list) {
    list.add(run_argmax, args, as<ArgmaxArgs>(args).rows);
}

void plan_penalise(const int64_t* args, PhaseList& list) {
    list.add(run_penalise, args, as<PenaliseArgs>(args).rows);
}

void plan_draw(const int64_t* args, PhaseList& list) {
    list.need_local(Row::bytes(as<DrawArgs>(args).size));
    list.add(run_draw, args, as<DrawArgs>(args).rows);
}

}  // namespace headstock
