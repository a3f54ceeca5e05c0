// Tiles: 16 rows of 32 bfloat16 numbers, or of 16 float32 sums; registers of AMX, or memory where there is none. Left
// operands are rows as they lie in memory; right ones are packed in pairs: row p holds (x[2p][n], x[2p+1][n]) for every
// column n.
#pragma once

#include <algorithm>
#include <cstring>

#include "common.h"

constexpr int TILE = 512;  // bfloat16 numbers of a tile

static inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static inline int64_t down(int64_t x, int64_t to) { return x / to * to; }

// Intrinsics do not tell the compiler all that they read and write in memory.
static inline void written() { asm volatile("" ::: "memory"); }

// Eight tiles: 0 to 3 hold sums, 4 and 5 left operands, 6 and 7 right ones. A function that uses them says TILES() first.
#ifdef __AMX_BF16__

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

#define TILES()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_MULTIPLY(sum, left, right) _tile_dpbf16ps(sum, left, right)
#define MULTIPLY_2X2()       \
    TILE_MULTIPLY(0, 4, 6); \
    TILE_MULTIPLY(1, 4, 7); \
    TILE_MULTIPLY(2, 5, 6); \
    TILE_MULTIPLY(3, 5, 7)

#else

// The same where there is only AVX-512. Operands are not copied, and products wait until their sums are stored: then
// those of all steps are made row by row, with a row's sums in registers. Until then operands must stay as they are.
class Tiles {
    static constexpr int MOST = 8;  // steps whose right operands stay in the first-level cache
    alignas(64) float sums[4][16 * 16];
    const char* operand[8];
    int64_t stride[8];  // bytes between a left operand's rows; a right one's lie one behind the other
    const char *left[2][MOST], *right[2][MOST];
    int waiting = 0;

    // Adds products of ROWS rows, `apart` bytes from one another, by COUNT tiles on the right.
    template <int ROWS, int COUNT>
    static void multiply(float* const (&sum)[COUNT], const char* const* x, int64_t apart, const char* const* const (&y)[COUNT],
                         int64_t offset, int steps) {
        __m512 s[ROWS][COUNT];
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
            for (int j = 0; j < COUNT; j++) s[i][j] = _mm512_load_ps(sum[j] + i * 16);
        for (int step = 0; step < steps; step++) {
            const char* own = x[step] + offset;
            for (int pair = 0; pair < 16; pair++, own += 4) {
                __m512bh beside[COUNT];
#pragma GCC unroll 2
                for (int j = 0; j < COUNT; j++) beside[j] = (__m512bh)_mm512_load_si512(y[j][step] + pair * 64);
#pragma GCC unroll 16
                for (int i = 0; i < ROWS; i++) {
                    int both;
                    memcpy(&both, own + i * apart, 4);
#pragma GCC unroll 2
                    for (int j = 0; j < COUNT; j++)
                        s[i][j] = _mm512_dpbf16_ps(s[i][j], (__m512bh)_mm512_set1_epi32(both), beside[j]);
                }
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
            for (int j = 0; j < COUNT; j++) _mm512_store_ps(sum[j] + i * 16, s[i][j]);
    }

    void catch_up() {
        constexpr int ROWS = 8;
        for (int half = 0; half < 2; half++)
            for (int row = 0; row < 16; row += ROWS)
                multiply<ROWS, 2>({sums[2 * half] + row * 16, sums[2 * half + 1] + row * 16}, left[half], stride[4 + half],
                                  {right[0], right[1]}, row * stride[4 + half], waiting);
        waiting = 0;
    }

  public:
    void zero(int tile) { memset(sums[tile], 0, sizeof sums[tile]); }
    void load(int tile, const void* from, int64_t apart) {
        if (tile < 4)
            for (int i = 0; i < 16; i++)
                _mm512_store_ps(sums[tile] + i * 16, _mm512_loadu_ps((const char*)from + i * apart));
        else
            operand[tile] = (const char*)from, stride[tile] = apart;
    }
    void store(int tile, void* to, int64_t apart) {
        if (waiting) catch_up();
        for (int i = 0; i < 16; i++) _mm512_storeu_ps((char*)to + i * apart, _mm512_load_ps(sums[tile] + i * 16));
    }
    void multiply(int sum, int x, int y) {
        multiply<16, 1>({sums[sum]}, operand + x, stride[x], {operand + y}, 0, 1);
    }
    void multiply_2x2() {
        for (int half = 0; half < 2; half++) left[half][waiting] = operand[4 + half], right[half][waiting] = operand[6 + half];
        if (++waiting == MOST) catch_up();
    }
};

static thread_local Tiles threads_tiles;
static void begin_tiles() {}
static void end_tiles() {}

#define TILES() Tiles& own_tiles = threads_tiles
#define TILE_ZERO(tile) own_tiles.zero(tile)
#define TILE_LOAD(tile, from, stride) own_tiles.load(tile, from, stride)
#define TILE_STORE(tile, to, stride) own_tiles.store(tile, to, stride)
#define TILE_MULTIPLY(sum, left, right) own_tiles.multiply(sum, left, right)
#define MULTIPLY_2X2() own_tiles.multiply_2x2()

#endif

// The four sums as one block of two by two: those on the right lie `right` numbers further on, the lower ones `lower`.
#define ZERO_2X2() \
    TILE_ZERO(0);  \
    TILE_ZERO(1);  \
    TILE_ZERO(2);  \
    TILE_ZERO(3)
#define MOVE_2X2(MOVE, block, right, lower, stride) \
    MOVE(0, block, stride);                         \
    MOVE(1, (block) + (right), stride);             \
    MOVE(2, (block) + (lower), stride);             \
    MOVE(3, (block) + (lower) + (right), stride)

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

// One left tile from 32 rows of 16 columns, transposed: 16 rows of 32. `rows` of the 32 exist.
static inline void transposed(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
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
