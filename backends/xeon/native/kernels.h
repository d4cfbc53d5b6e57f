// Arguments of every kernel, as an instruction holds them: 8 bytes each, in this order.
#pragma once

#include <cstdint>
#include <cstring>

#include "program.h"
#include "weight.h"

namespace headstock {

enum class Element : int64_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kInt8 = 3, kFp8 = 4 };

// x [rows, size] -> y. With `residual`, residual += x first and the sum is normalised.
struct NormArgs {
    const float* x;
    int64_t x_stride;
    float* residual;  // Null: none.
    int64_t residual_stride;
    const float* weight;
    float* y;
    int64_t y_stride;
    int64_t rows;
    int64_t size;
    double eps;
};

enum class ActivationKind : int64_t {
    kSilu = 0, kGeluTanh = 1, kGelu = 2, kRelu2 = 3, kClippedSwiglu = 4, kXielu = 5,
    kBoundedSwiglu = 6, kLimitedSwiglu = 7
};

// How gate and up features are joined. `parameters`: what the kind takes.
struct Activation {
    int64_t kind;  // ActivationKind
    double parameters[4];
};

// y = activation(gate) * up. [rows, size] each
struct ActivationArgs {
    const float* gate;
    int64_t gate_stride;
    const float* up;
    int64_t up_stride;
    float* y;
    int64_t rows;
    int64_t size;
    Activation activation;
};

// y = columns of x in some order, within bounds. [rows, size]
struct ColumnsArgs {
    const float* x;
    int64_t x_stride;
    const int64_t* order;       // [size]; null: as they are.
    const float* bounds;        // The least and the largest; null: none.
    float* y;
    int64_t rows;
    int64_t size;
};

// y = x · factor · weight · table[position] + other, as far as these are there.
struct FeaturesArgs {
    const float* x;
    int64_t x_stride;
    const float* other;         // Null: nothing is added.
    int64_t other_stride;
    const float* weight;        // [size]; null: all are 1.
    const float* table;         // [positions]; null: no position counts.
    const int64_t* positions;   // [rows]; null: the table has a number for each row.
    float* y;                   // [rows, size]
    int64_t rows;
    int64_t size;
    double factor;
};

// y = cap tanh(x / cap).
struct CapArgs {
    const float* x;
    int64_t stride;
    float* y;        // [rows, size]
    int64_t rows;
    int64_t size;
    double cap;
};

struct LookUpArgs {
    const Weight* weight;
    const int64_t* ids;
    float* y;        // [rows, in_features]
    int64_t rows;
    int64_t first;   // Id of row 0; other ids give zeros.
    double factor;   // Multiplies the rows.
};

// y[i] = x[index[i] + shift], rows of `bytes` bytes.
struct TakeArgs {
    const char* x;
    int64_t x_stride;     // Bytes.
    const void* index;
    int64_t index_bytes;  // 4 or 8: of an element.
    int64_t shift;
    char* y;
    int64_t y_stride;     // Bytes.
    int64_t rows;
    int64_t bytes;
};

struct ArgmaxArgs {
    const float* logits;
    int64_t stride;
    int64_t* ids;
    int64_t rows;
    int64_t size;
};

// The op token_logprobs.
struct LogprobArgs {
    const float* logits;
    int64_t stride;
    const int64_t* ids;       // [rows]
    const int64_t* asked;     // [rows, num_asked]
    int64_t num_asked;
    int64_t k;
    float* chosen;            // [rows]
    float* top;               // [rows, k]
    int64_t* top_ids;         // [rows, k]
    float* of_asked;          // [rows, num_asked]
    int64_t rows;
    int64_t size;
};

// Copies rows of `bytes` bytes.
struct CopyArgs {
    const char* x;
    int64_t x_stride;     // Bytes.
    char* y;
    int64_t y_stride;
    int64_t rows;
    int64_t bytes;
};

// The op place_step.
struct PlaceArgs {
    const int32_t* slots;
    const int32_t* query_starts;
    const int32_t* host_ids;
    const int32_t* lengths;
    const int32_t* done;
    const int32_t* last_ids;
    const int32_t* slot_pages;
    int64_t slot_pages_stride;
    int64_t* ids;
    int64_t* positions;
    int32_t* row_of_token;
    int64_t* write_slots;
    int32_t* kv_lengths;
    int32_t* row_pages;
    int64_t row_pages_stride;
    int64_t num_pages;    // Page table entries of a row.
    int64_t rows;
    int64_t tokens;
    int64_t page_size;    // 0: pages are states.
    const int32_t* drafts;
    int64_t num_drafts;   // Of a slot.
    const int32_t* slot_adapters;
    int32_t* row_adapters;  // Null where there are no adapters.
};

// The op place_step, of the groups after the first; after `place`.
struct PlaceViewArgs {
    const int32_t* slots;
    const int32_t* query_starts;
    const int32_t* done;
    const int64_t* positions;
    const int32_t* slot_pages;
    int64_t slot_pages_stride;
    int64_t* write_slots;
    int32_t* row_pages;
    int64_t row_pages_stride;
    int64_t num_pages;
    int64_t rows;
    int64_t tokens;
    int64_t page_size;
};

struct AdvanceArgs {
    const int32_t* slots;
    const int32_t* kv_lengths;
    const int32_t* done;
    int32_t* lengths;
    int64_t rows;
};

// The op settle_step.
struct SettleArgs {
    const int64_t* drawn;     // [rows, num_drawn]
    int64_t num_drawn;
    const int32_t* accepted;
    const int32_t* slots;
    const int32_t* num_draws;
    const int32_t* max_outputs;
    const int32_t* stop_ids;
    int64_t num_stops;
    int32_t* last_ids;
    int64_t* num_outputs;
    int32_t* done;
    int32_t* lengths;
    int32_t* outbox;      // [steps kept, rows, 2 + ids]
    int64_t outbox_stride;
    int64_t outbox_row_stride;
    int64_t outbox_size;  // Steps it keeps.
    int64_t* cursor;
    int64_t rows;
};

// The op accept_drafts.
struct AcceptArgs {
    const int64_t* drawn;      // [rows, num_drafts + 1]
    const int32_t* drafts;     // [rows, num_drafts]
    int64_t drafts_stride;
    const int32_t* num_draws;
    int32_t* accepted;
    int64_t num_drafts;
    int64_t rows;
};

// The op spread_draws.
struct SpreadArgs {
    const int32_t* slots;
    const int64_t* num_outputs;  // Of each slot.
    int32_t* slots_out;          // [rows * num_draws]
    int64_t* outputs;            // [rows * num_draws]
    int64_t num_draws;
    int64_t rows;
};

// The op append_outputs; after `settle`.
struct AppendArgs {
    int32_t* histories;       // [slots, stride]
    int64_t stride;
    const int32_t* lengths;   // Of each slot.
    const int32_t* slots;
    const int32_t* outbox;    // [steps kept, rows, words]
    int64_t outbox_stride;
    int64_t outbox_row_stride;
    int64_t outbox_size;      // Steps it keeps.
    const int64_t* cursor;
    int32_t* known;
    int64_t rows;
};

// The op draft_ngrams.
struct NgramArgs {
    const int32_t* histories;  // [slots, stride]
    int64_t stride;
    const int32_t* slots;
    const int32_t* known;      // Tokens of each row's history.
    int64_t max_n;
    int64_t min_n;
    int32_t* drafts;           // [rows, num_drafts]
    int64_t num_drafts;
    int64_t rows;
};

// The op enter_drafts.
struct EnterArgs {
    const int32_t* drafts;    // [rows, num_drafts]
    const int32_t* slots;
    int32_t* slot_drafts;     // [slots, num_drafts]
    int64_t num_drafts;
    int64_t vocab_size;
    int32_t* outbox;          // [steps kept, rows, words]
    int64_t outbox_stride;
    int64_t outbox_row_stride;
    int64_t outbox_size;      // Steps it keeps.
    int64_t last_word;        // Of an entry: how many drafts there are.
    const int64_t* cursor;
    int64_t rows;
};

struct CountArgs {
    const int64_t* drawn;
    const int32_t* slots;
    const int32_t* done;
    int32_t* counts;
    int64_t stride;
    int64_t rows;
};

struct MarkArgs {
    const int64_t* drawn;
    const float* logits;
    int64_t stride;
    int64_t* marked;
    int64_t rows;
};

struct ForbidArgs {
    float* logits;
    int64_t stride;
    const int32_t* stop_ids;
    int64_t num_stops;
    const int64_t* num_outputs;
    const int32_t* min_outputs;
    int64_t rows;
};

struct PenaliseArgs {
    float* logits;
    int64_t stride;
    const int32_t* counts;    // [rows, size]
    const uint8_t* is_prompt; // [rows, size]
    const float* repetition;
    const float* frequency;
    const float* presence;
    int64_t rows;
    int64_t size;
};

struct BiasArgs {
    float* logits;
    int64_t stride;
    const int64_t* ids;
    const float* biases;
    int64_t num_biases;
    int64_t rows;
};

struct DrawArgs {
    const float* logits;
    int64_t stride;
    const float* temperature;
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const int64_t* seeds;
    const int64_t* indexes;
    int64_t* ids;
    int64_t rows;
    int64_t size;
};

// Pages of one layer: [pages][kv heads]{keys [head_dim][page_size], values [page_size][head_dim]}.
// Keys are transposed so that scores of neighbouring tokens are neighbouring lanes. In 8 bits the
// tokens' scales follow, float32 [page_size], after the keys and after the values.
struct Pages {
    char* data;
    int64_t element;     // Element
    int64_t page_size;
    int64_t num_kv_heads;
    int64_t head_dim;

    bool has_scales() const { return element >= static_cast<int64_t>(Element::kInt8); }
    int64_t element_bytes() const { return element == 0 ? 4 : has_scales() ? 1 : 2; }
    int64_t elements_bytes() const { return page_size * head_dim * element_bytes(); }
    int64_t half_bytes() const {
        return elements_bytes() + (has_scales() ? page_size * int64_t{sizeof(float)} : 0);
    }
    char* keys(int64_t page, int64_t head) const {
        return data + (page * num_kv_heads + head) * 2 * half_bytes();
    }
    char* values(int64_t page, int64_t head) const { return keys(page, head) + half_bytes(); }
    // Scales of the keys or values that `half` points at.
    float* scales(char* half) const { return reinterpret_cast<float*>(half + elements_bytes()); }
};

// How queries, keys and values are prepared beyond the plain way: neighbours rotated as pairs; norms
// behind the rotation; values normalised without weights; keys as they came for values.
enum RotationOrder : int64_t {
    kInterleaved = 1, kNormedLast = 2, kNormedValues = 4, kKeysAsValues = 8
};

struct RotateArgs {
    Pages pages;
    const float* qkv;           // [tokens, (H + 2 K) D], or without values. K may be 0.
    int64_t qkv_stride;
    const float* cos_sin;       // [positions, rotated]; null: no rotation.
    int64_t rotated;
    int64_t order;              // Sum of what RotationOrder has.
    const float* q_norm;        // Null: no norm.
    const float* k_norm;
    double eps;
    const int64_t* positions;
    const int64_t* write_slots;
    float* q;                   // [tokens, H, D]
    int64_t tokens;
    int64_t num_heads;
};

// Stores keys and values as they are.
struct WriteArgs {
    Pages pages;
    const float* k;             // [tokens, K, D], last two contiguous
    int64_t k_stride;
    const float* v;
    int64_t v_stride;
    const int64_t* write_slots;
    int64_t tokens;
};

struct AttentionPlan;

struct AttendPlanArgs {
    AttentionPlan* plan;
    const int32_t* query_starts;  // [rows + 1]
    const int32_t* kv_lengths;    // [rows]
    const int32_t* page_table;    // [rows, pages a row]
    int64_t pages_per_row;
    const int32_t* tree;          // [nodes, 4]
    const int32_t* counts;        // counts[2]: nodes. Null: no tree.
    int64_t rows;
    int64_t tokens;
};

struct AttendArgs {
    Pages pages;
    AttentionPlan* plan;
    const float* q;               // [tokens, H, D]
    int64_t q_stride;             // Elements from token to token; heads are contiguous.
    float* y;                     // [tokens, H, D]
    const float* sinks;           // [H]; null: none.
    const int32_t* page_table;
    int64_t pages_per_row;
    int64_t tokens;
    int64_t num_heads;
    double scale;
    double soft_cap;              // 0: none.
};

// The op route_topk. [rows, size] -> [rows, k]
struct RouteArgs {
    const float* logits;
    int64_t stride;
    float* weights;
    int32_t* experts;
    int64_t rows;
    int64_t size;
    int64_t k;
    int64_t is_normalized;
};

// Where the experts of a step find their rows; N = tokens * k choices, E experts. Filled by the first
// phase, after which rows [0, begins[E]) are those of the active experts, one after another.
struct ExpertLists {
    int32_t* begins;    // Row at which each expert's begin. [E + 1]
    int32_t* active;    // Experts that have rows, then -1. [E]
    int32_t* choices;   // The choice of each row. [N]
    int32_t* rows;      // The row of each choice; -1: none. [N]
};

// The op experts. Both weights hold all experts, each from a panel of its own on.
struct ExpertsArgs {
    LinearArgs gate_up;      // From the gathered rows, which it is given; y [N, 2 F], or [N, F]
                             // of experts without gates.
    LinearArgs down;         // From the first F of those; y where the gathered rows were. [N, D]
    const float* x;          // [tokens, D]
    int64_t x_stride;
    const float* weights;    // [tokens, k]
    const int32_t* experts;  // [tokens, k]
    int32_t* lists;          // See ExpertLists: 2 E + 1 + 2 N numbers.
    float* y;                // [tokens, D]
    int64_t tokens;
    int64_t k;
    int64_t num_experts;
    int64_t activation;      // ActivationKind
    double parameters[2];    // As many as kinds with a gate of their own take.
};

// The op add_lora, in place. Places are counted from 1; a token's 0 is no adapter.
struct LoraArgs {
    const float* x;           // [tokens, in_features]
    int64_t x_stride;
    const float* down;        // [places, parts * rank, in_features]
    const float* up;          // [places, out_features, rank]
    const int32_t* adapters;  // [tokens]
    const int64_t* starts;    // Output that each part begins at. [parts]
    float* out;               // [tokens, out_features]
    int64_t out_stride;
    int64_t tokens;
    int64_t in_features;
    int64_t out_features;
    int64_t rank;             // A multiple of 8.
    int64_t parts;
};

static_assert(sizeof(ExpertsArgs) <= kMaxArgs * 8, "kMaxArgs is too small");
static_assert(sizeof(AttendArgs) <= kMaxArgs * 8, "kMaxArgs is too small");
static_assert(sizeof(RotateArgs) <= kMaxArgs * 8, "kMaxArgs is too small");

template <class T>
static inline const T& as(const int64_t* args) { return *reinterpret_cast<const T*>(args); }

// y = activation(gate) * up; y may be gate. Without `up` it is ones.
void activate_row(const Activation& activation, const float* gate, const float* up, float* y,
                  int64_t size);

void plan_linear(const int64_t* args, PhaseList& list);
void plan_route(const int64_t* args, PhaseList& list);
void plan_experts(const int64_t* args, PhaseList& list);
void plan_lora(const int64_t* args, PhaseList& list);
void plan_norm(const int64_t* args, PhaseList& list);
void plan_activation(const int64_t* args, PhaseList& list);
void plan_cap(const int64_t* args, PhaseList& list);
void plan_columns(const int64_t* args, PhaseList& list);
void plan_features(const int64_t* args, PhaseList& list);
void plan_look_up(const int64_t* args, PhaseList& list);
void plan_take(const int64_t* args, PhaseList& list);
void plan_copy(const int64_t* args, PhaseList& list);
void plan_place(const int64_t* args, PhaseList& list);
void plan_place_view(const int64_t* args, PhaseList& list);
void plan_advance(const int64_t* args, PhaseList& list);
void plan_settle(const int64_t* args, PhaseList& list);
void plan_accept(const int64_t* args, PhaseList& list);
void plan_spread(const int64_t* args, PhaseList& list);
void plan_append(const int64_t* args, PhaseList& list);
void plan_ngrams(const int64_t* args, PhaseList& list);
void plan_enter(const int64_t* args, PhaseList& list);
void plan_count(const int64_t* args, PhaseList& list);
void plan_mark(const int64_t* args, PhaseList& list);
void plan_forbid(const int64_t* args, PhaseList& list);
void plan_penalise(const int64_t* args, PhaseList& list);
void plan_bias(const int64_t* args, PhaseList& list);
void plan_draw(const int64_t* args, PhaseList& list);
void plan_logprobs(const int64_t* args, PhaseList& list);
void plan_argmax(const int64_t* args, PhaseList& list);
void plan_rotate(const int64_t* args, PhaseList& list);
void plan_write(const int64_t* args, PhaseList& list);
void plan_attend_plan(const int64_t* args, PhaseList& list);
void plan_attend(const int64_t* args, PhaseList& list);

}  // namespace headstock
