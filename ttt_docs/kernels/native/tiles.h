// AMX tiles: 16 rows of 32 bfloat16 numbers, or of 16 float32 sums. Left operands are rows as they lie in memory; right
// ones are packed in pairs: row p holds (x[2p][n], x[2p+1][n]) for every column n.
#pragma once

#include <algorithm>
#include <cstring>

#include "common.h"

constexpr int TILE = 512;  // bfloat16 numbers of a tile

static inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static inline int64_t down(int64_t x, int64_t to) { return x / to * to; }

// Intrinsics do not tell the compiler all that they read and write in memory.
static inline void written() { asm volatile("" ::: "memory"); }

struct TileConfig {
    alignas(64) uint8_t bytes[64] = {};
};

static thread_local TileConfig before;

static void begin_tiles() {
    _tile_storeconfig(before.bytes);  // oneDNN has its own and may count on finding it
    TileConfig mine;
    mine.bytes[0] = 1;
    for (int tile = 0; tile < 8; tile++) {
        mine.bytes[16 + 2 * tile] = 64;  // bytes per row
        mine.bytes[48 + tile] = 16;      // rows
    }
    written();
    _tile_loadconfig(mine.bytes);
}

static void end_tiles() { _tile_loadconfig(before.bytes); }

#define MULTIPLY_2X2()     \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7)

// 16 rows of 16 numbers of 32 bits.
static inline void transpose16(__m512i x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + 2 + j]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + 2 + j]);
        }
    for (int j = 0; j < 4; j++) {  // 4x4 blocks are transposed; now the blocks
        const __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88), b = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        y[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        y[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        y[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        y[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) x[i] = y[i];
}

// All four below fetch what the same call for the next 32 rows or columns will want: memory is slow to start, and the
// processor does not guess strides.
static inline void fetch(const bf16* x) { _mm_prefetch((const char*)x, _MM_HINT_T1); }

// One right tile from 16 columns that lie as rows of 32: pairs along a row. `rows` of the 16 exist; others are zero.
static inline void across(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
    __m512i x[16];
    for (int i = 0; i < 16; i++) {
        x[i] = i < rows ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
        fetch(from + (i + 32) * stride);
    }
    transpose16(x);
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 32, x[i]);
}

// One right tile from 32 rows of 16 columns: pairs along a column. `rows` of the 32 exist.
static inline void along(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
    const __m256i none = _mm256_setzero_si256();
    for (int i = 0; i < 32; i += 2) {
        const bf16* row = from + i * stride;
        fetch(row + 32);
        fetch(row + stride + 32);
        const __m256i a = i < rows ? _mm256_loadu_si256((const __m256i*)row) : none;
        const __m256i b = i + 1 < rows ? _mm256_loadu_si256((const __m256i*)(row + stride)) : none;
        const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16);
        _mm512_store_si512(to + i * 16, _mm512_or_si512(_mm512_cvtepu16_epi32(a), high));
    }
}

// One left tile from 32 rows of 16 columns, turned: 16 rows of 32. `rows` of the 32 exist.
static inline void turned(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
    __m512i low[16], high[16];
    for (int i = 0; i < 16; i++) {
        low[i] = i < rows ? (__m512i)load16(from + i * stride) : _mm512_setzero_si512();
        high[i] = 16 + i < rows ? (__m512i)load16(from + (16 + i) * stride) : _mm512_setzero_si512();
        fetch(from + i * stride + 32);
        fetch(from + (16 + i) * stride + 32);
    }
    transpose16(low);
    transpose16(high);
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 32, narrow((__m512)low[i], (__m512)high[i]));
}

// One left tile as it lies in memory. `rows` of the 16 exist.
static inline void straight(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
    for (int i = 0; i < 16; i++) {
        _mm512_store_si512(to + i * 32, i < rows ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512());
        fetch(from + (i + 32) * stride);
    }
}
