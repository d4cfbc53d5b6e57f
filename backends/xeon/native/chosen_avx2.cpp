// Attention to tokens, or to blocks of tokens, that were chosen for each query.
#include "chosen.h"

#include "gathered.h"
#include "narrow.h"

namespace headstock {
namespace {

int64_t in_parts(int64_t count, int64_t of_part) { return (count + of_part - 1) / of_part; }

struct ChosenLatents {
    using Args = AttendLatentsArgs;

    static GatheredShape shape(const Args& args) {
        return {args.tokens, args.num_heads, heads_together(args.num_heads),
                in_parts(args.most, kSplit), args.pages.cached_size(), args.pages.latent_size,
                false};
    }
    static bool is_real(const Args& args, int64_t token) { return args.rows.is_real(token); }
    static const float* sink(const Args&, int64_t) { return nullptr; }
    static float* output(const Args& args, int64_t token, int64_t head) {
        return args.y + (token * args.num_heads + head) * args.pages.latent_size;
    }

    static void load(const Args& args, int64_t token, int64_t head, GatheredTile& tile) {
        const int64_t size = args.pages.cached_size();
        tile.load_queries(args.q + (token * args.num_heads + head) * size, size, 1.0f);
    }

    static void attend(const Args& args, int64_t token, int64_t, int64_t part, GatheredTile& tile) {
        const LatentPages& pages = args.pages;
        const int32_t* table = args.rows.pages(token);
        const int64_t seen = args.rows.seen(token), size = pages.cached_size();
        const int64_t end = min64((part + 1) * kSplit, args.most);
        int64_t count = 0;
        for (int64_t i = part * kSplit; i < end; ++i) {
            const int64_t at = args.chosen[token * args.most + i];
            if (at < 0 || at >= seen) continue;
            const int64_t slot = table[at / pages.page_size] * pages.page_size + at % pages.page_size;
            load_row(pages.at(slot), pages.element, size, tile.keys + count++ * size);
        }
        tile.attend(count);
    }
};

// Heads of one key/value head are together. A part is whole blocks, kSplit tokens or one block.
struct ChosenBlocks {
    using Args = AttendBlocksArgs;

    static int64_t group(const Args& args) { return args.num_heads / args.pages.num_kv_heads; }
    static int64_t blocks_a_part(const Args& args) { return max64(1, kSplit / args.block_size); }

    static GatheredShape shape(const Args& args) {
        const int64_t size = args.pages.head_dim;
        return {args.tokens, args.num_heads, heads_together(group(args)),
                in_parts(args.most, blocks_a_part(args)), size, size, true};
    }
    static bool is_real(const Args& args, int64_t token) { return args.rows.is_real(token); }
    static const float* sink(const Args&, int64_t) { return nullptr; }
    static float* output(const Args& args, int64_t token, int64_t head) {
        return args.y + (token * args.num_heads + head) * args.pages.head_dim;
    }

    static void load(const Args& args, int64_t token, int64_t head, GatheredTile& tile) {
        const int64_t size = args.pages.head_dim;
        tile.load_queries(args.q + token * args.q_stride + head * size, size,
                          static_cast<float>(args.scale));
    }

    static void attend(const Args& args, int64_t token, int64_t head, int64_t part,
                       GatheredTile& tile) {
        const int64_t kv_heads = args.pages.num_kv_heads, kv_head = head / group(args);
        const int32_t* chosen = args.chosen + (token * kv_heads + kv_head) * args.most;
        const int64_t seen = args.rows.seen(token), in_part = blocks_a_part(args);
        const int64_t end = min64((part + 1) * in_part, args.most);
        int64_t count = 0;
        for (int64_t i = part * in_part; i < end; ++i) {
            if (chosen[i] < 0) continue;
            const int64_t first = chosen[i] * args.block_size;
            const int64_t past = min64(first + args.block_size, seen);
            for (int64_t at = first; at < past;) {
                const int64_t some = min64(past - at, kSplit - count);
                gather(args, args.rows.pages(token), kv_head, at, some, count, tile);
                at += some;
                count += some;
                if (count < kSplit) continue;
                tile.attend(count);
                count = 0;
            }
        }
        tile.attend(count);
    }

    // Copies keys and values of the tokens [first, first + count) behind the `begin` that are there.
    static void gather(const Args& args, const int32_t* table, int64_t kv_head, int64_t first,
                       int64_t count, int64_t begin, GatheredTile& tile) {
        const Pages& pages = args.pages;
        const int64_t size = pages.head_dim;
        for (int64_t i = 0; i < count;) {
            const int64_t place = (first + i) % pages.page_size;
            const int64_t some = min64(pages.page_size - place, count - i);
            const int64_t page = table[(first + i) / pages.page_size];
            float* keys = tile.keys + (begin + i) * size;
            turn_keys(pages, pages.keys(page, kv_head), place, some, keys);
            const char* values = pages.values(page, kv_head);
            for (int64_t t = 0; t < some; ++t)
                load_row(values + (place + t) * size * pages.element_bytes(), pages.element, size,
                         tile.values + (begin + i + t) * size);
            i += some;
        }
    }

    // Writes keys, which pages have feature by feature, token by token.
    static void turn_keys(const Pages& pages, const char* page, int64_t place, int64_t count,
                          float* keys) {
        const int64_t size = pages.head_dim;
        float of_tokens[8];
        for (int64_t d = 0; d < size; ++d)
            for (int64_t t = 0; t < count;) {
                // Pages are whole vectors of tokens: from a vector's first on nothing is cut.
                const int64_t at = (place + t) / 8 * 8, skip = place + t - at;
                const int64_t some = min64(8 - skip, count - t);
                load_row(page + (d * pages.page_size + at) * pages.element_bytes(), pages.element, 8,
                         of_tokens);
                for (int64_t i = 0; i < some; ++i) keys[(t + i) * size + d] = of_tokens[skip + i];
                t += some;
            }
    }
};

}  // namespace

void plan_attend_latents(const int64_t* args, PhaseList& list) {
    GatheredPhases<ChosenLatents>::plan(args, list);
}

void plan_attend_blocks(const int64_t* args, PhaseList& list) {
    GatheredPhases<ChosenBlocks>::plan(args, list);
}

}  // namespace headstock
