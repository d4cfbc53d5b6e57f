// The AMX tile instructions that kernels use; or, with HS_MODEL, a scalar model of each.
//
// A tile has up to 16 rows of up to 64 bytes. Kernels use one shape for all: kernels' numbers of
// rows and bytes are set for a thread before it starts, and given up when it is done.
#pragma once

#include "vector512.h"

namespace headstock {
namespace {

constexpr int kTileRows16 = 16;
constexpr int kTileBytes = 64;

// Tiles by what they hold: results, activations, weights.
enum Tile : int { kResult = 0, kResultLow = 1, kLeft = 2, kLeftLow = 3, kRight = 4 };

#ifndef HS_MODEL

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Shapes for results of 16 x 16 from `depth` bytes of activations a row.
inline void begin_tiles(int depth) {
    TileShapes shapes;
    for (const int tile : {kResult, kResultLow}) {
        shapes.rows[tile] = 16;
        shapes.bytes[tile] = 64;
    }
    for (const int tile : {kLeft, kLeftLow}) {
        shapes.rows[tile] = 16;
        shapes.bytes[tile] = static_cast<uint16_t>(depth);
    }
    shapes.rows[kRight] = static_cast<uint8_t>(depth / 4);
    shapes.bytes[kRight] = 64;
    _tile_loadconfig(&shapes);
}
inline void end_tiles() { _tile_release(); }

// In assembly, since the compilers' own functions are macros that want literal numbers.
template <int T> inline void zero_tile() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> inline void load_tile(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void store_tile(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
// C += A (int8) * B (int8); C += A (uint8) * B (int8); C += A (bfloat16) * B (bfloat16).
template <int C, int A, int B> inline void multiply_int8() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> inline void multiply_uint8() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> inline void multiply_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else  // HS_MODEL

struct ModelTile {
    int rows, bytes;
    alignas(64) char data[16][64];
};

thread_local ModelTile tiles[8];

inline void begin_tiles(int depth) {
    for (auto& tile : tiles) tile.rows = 16, tile.bytes = 64;
    tiles[kLeft].bytes = tiles[kLeftLow].bytes = depth;
    tiles[kRight].rows = depth / 4;
}
inline void end_tiles() {}

template <int T> inline void zero_tile() { std::memset(tiles[T].data, 0, sizeof(tiles[T].data)); }
template <int T> inline void load_tile(const void* p, int64_t stride) {
    zero_tile<T>();
    for (int r = 0; r < tiles[T].rows; ++r)
        std::memcpy(tiles[T].data[r], static_cast<const char*>(p) + r * stride,
                    static_cast<size_t>(tiles[T].bytes));
}
template <int T> inline void store_tile(void* p, int64_t stride) {
    for (int r = 0; r < tiles[T].rows; ++r)
        std::memcpy(static_cast<char*>(p) + r * stride, tiles[T].data[r],
                    static_cast<size_t>(tiles[T].bytes));
}

template <class T>
inline T tile_element(const ModelTile& tile, int row, int i) {
    T value;
    std::memcpy(&value, tile.data[row] + i * static_cast<int>(sizeof(T)), sizeof(T));
    return value;
}

template <class T>
inline void set_tile_element(ModelTile& tile, int row, int i, T value) {
    std::memcpy(tile.data[row] + i * static_cast<int>(sizeof(T)), &value, sizeof(T));
}

template <class Left, int C, int A, int B>
inline void multiply_bytes() {
    for (int m = 0; m < tiles[C].rows; ++m)
        for (int n = 0; n < 16; ++n) {
            int64_t sum = tile_element<int32_t>(tiles[C], m, n);
            for (int k = 0; k < tiles[A].bytes; ++k)
                sum += int32_t{tile_element<Left>(tiles[A], m, k)} *
                       tile_element<int8_t>(tiles[B], k / 4, 4 * n + k % 4);
            set_tile_element(tiles[C], m, n, wrap(sum));
        }
}

template <int C, int A, int B> inline void multiply_int8() { multiply_bytes<int8_t, C, A, B>(); }
template <int C, int A, int B> inline void multiply_uint8() { multiply_bytes<uint8_t, C, A, B>(); }
template <int C, int A, int B> inline void multiply_bf16() {
    for (int m = 0; m < tiles[C].rows; ++m)
        for (int n = 0; n < 16; ++n) {
            float sum[2] = {0, 0};  // Even and odd ones apart, then together.
            for (int k = 0; k < tiles[A].bytes / 2; ++k)
                sum[k % 2] = std::fma(bf16_to_float(tile_element<uint16_t>(tiles[A], m, k)),
                                      bf16_to_float(tile_element<uint16_t>(tiles[B], k / 2, 2 * n + k % 2)),
                                      sum[k % 2]);
            set_tile_element(tiles[C], m, n, tile_element<float>(tiles[C], m, n) + (sum[0] + sum[1]));
        }
}

#endif

}  // namespace
}  // namespace headstock
