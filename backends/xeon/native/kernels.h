// Arguments of every kernel, as an instruction holds them: 8 bytes each, in this order.
#pragma once

#include <cstdint>
#include <cstring>

#include "program.h"
#include "weight.h"

namespace headstock {

enum class Element : int64_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

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

// gate_up [rows, 2 size] -> y [rows, size].
struct ActivationArgs {
    const float* gate_up;
    int64_t stride;
    float* y;
    int64_t rows;
    int64_t size;
};

struct LookUpArgs {
    const Weight* weight;
    const int64_t* ids;
    float* y;        // [rows, in_features]
    int64_t rows;
    int64_t first;   // Id of row 0; other ids give zeros.
};

// y[i] = x[index[i]], rows of `size` float32.
struct GatherArgs {
    const float* x;
    int64_t x_stride;
    const int64_t* index;
    float* y;
    int64_t rows;
    int64_t size;
};

struct ArgmaxArgs {
    const float* logits;
    int64_t stride;
    int64_t* ids;
    int64_t rows;
    int64_t size;
};

// Pages of one layer: [pages][kv heads]{keys [head_dim][page_size], values [page_size][head_dim]}.
// Keys are transposed so that scores of neighbouring tokens are neighbouring lanes.
struct Pages {
    char* data;
    int64_t element;     // Element
    int64_t page_size;
    int64_t num_kv_heads;
    int64_t head_dim;

    int64_t element_bytes() const { return element == 0 ? 4 : 2; }
    int64_t half_bytes() const { return page_size * head_dim * element_bytes(); }
    char* keys(int64_t page, int64_t head) const {
        return data + (page * num_kv_heads + head) * 2 * half_bytes();
    }
    char* values(int64_t page, int64_t head) const { return keys(page, head) + half_bytes(); }
};

struct RotateArgs {
    Pages pages;
    const float* qkv;           // [tokens, (H + 2 K) D]
    int64_t qkv_stride;
    const float* cos_sin;       // [positions, rotated]; null: no rotation.
    int64_t rotated;
    int64_t is_interleaved;
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
    int64_t window;               // 0: none. Tokens a query sees, itself included.
};

static_assert(sizeof(AttendArgs) <= kMaxArgs * 8, "kMaxArgs is too small");
static_assert(sizeof(RotateArgs) <= kMaxArgs * 8, "kMaxArgs is too small");

template <class T>
static inline const T& as(const int64_t* args) { return *reinterpret_cast<const T*>(args); }

void plan_norm(const int64_t* args, PhaseList& list);
void plan_activation(const int64_t* args, PhaseList& list);
void plan_look_up(const int64_t* args, PhaseList& list);
void plan_gather(const int64_t* args, PhaseList& list);
void plan_argmax(const int64_t* args, PhaseList& list);
void plan_rotate(const int64_t* args, PhaseList& list);
void plan_write(const int64_t* args, PhaseList& list);
void plan_attend_plan(const int64_t* args, PhaseList& list);
void plan_attend(const int64_t* args, PhaseList& list);

}  // namespace headstock
