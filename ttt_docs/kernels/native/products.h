// Matrix products of bfloat16 with float32 sums. What follows a product is done on each 32x32 block of it, while the
// block is in the first-level cache and the next one is being multiplied.
#pragma once

#include "tiles.h"

// A bfloat16 matrix as it lies in memory; `transposed`: the operand is its transpose. With `beside`, a right operand's
// columns come 32 from each of two matrices in turn.
struct Operand {
    const bf16* data;
    int64_t stride;
    bool transposed = false;
    const bf16* beside = nullptr;
};

constexpr int64_t BLOCK = 32 * 32;
constexpr int64_t ITEM_ROWS = 512, ITEM_COLUMNS = 576;  // of the result, for which a thread works at a time, at most
constexpr int64_t WHOLE_STEPS = 24;                     // of 32: up to this depth a block is summed in one go
constexpr int64_t STEPS = 16;                           // else in parts, so that both operands stay in caches

// 32 rows from `row` on and `steps` of depth from `first` on, as left tiles [steps, 2, TILE].
static inline void pack_left(bf16* to, const Operand& a, int64_t rows, int64_t depth, int64_t row, int64_t first,
                             int64_t steps) {
    for (int64_t d = first * 32; d < (first + steps) * 32; d += 32)
        for (int64_t r = row; r < row + 32; r += 16, to += TILE)
            if (a.transposed)
                transposed(to, a.data + d * a.stride + r, a.stride, depth - d);
            else
                straight(to, a.data + r * a.stride + d, a.stride, rows - r);
}

// 32 columns, as right tiles [steps, 2, TILE].
static inline void pack_right(bf16* to, const Operand& b, int64_t depth, int64_t column, int64_t first, int64_t steps) {
    for (int64_t d = first * 32; d < (first + steps) * 32; d += 32)
        for (int half = 0; half < 2; half++, to += TILE) {
            const bf16* data = b.beside && column % 64 ? b.beside : b.data;
            const int64_t c = (b.beside ? column / 64 * 32 : column) + half * 16;
            if (b.transposed)
                across(to, data + c * b.stride + d, b.stride, 16);
            else
                along(to, data + d * b.stride + c, b.stride, depth - d);
        }
}

// a [rows, depth] times b [depth, columns]: finish(row, column, block) gets every 32x32 block, float32 [32, 32], from
// left to right, an odd one right behind the even one before it; rows beyond the last are in it, as zeros. columns is a
// multiple of 32; so is depth unless both operands lie depth by depth (`a` transposed, `b` not). The order in
// which a number is summed depends on depth alone.
template <class Finish>
void product(int64_t rows, int64_t columns, int64_t depth, Operand a, Operand b, int64_t threads, Finish finish) {
    const int64_t steps = up(depth, 32) / 32, row_blocks = up(rows, 32) / 32, column_blocks = columns / 32;
    const bool whole = steps <= WHOLE_STEPS;
    const int64_t at_once = whole ? steps : STEPS;
    int64_t column_parts = up(columns, ITEM_COLUMNS) / ITEM_COLUMNS, row_parts = up(rows, ITEM_ROWS) / ITEM_ROWS;
    if (whole) {  // then a part of b stays in a thread's second-level cache for all rows
        column_parts = std::min(up(column_parts, threads), column_blocks);
        row_parts = up(threads, column_parts) / column_parts;
    } else {
        row_parts = std::min(up(row_parts, threads), row_blocks);
    }
    const int64_t wide = up(up(column_blocks, column_parts) / column_parts, 2), high = up(row_blocks, row_parts) / row_parts;
    parallel(column_parts * row_parts, threads, begin_tiles, [&](int64_t item) {
        const int64_t first_row = item % row_parts * high, last_row = std::min(first_row + high, row_blocks);
        const int64_t first_column = item / row_parts * wide, last_column = std::min(first_column + wide, column_blocks);
        if (first_column >= last_column || first_row >= last_row) return;
        const int64_t tiles = at_once * 2 * TILE;  // bfloat16 numbers of 32 packed rows or columns
        bf16* left = (bf16*)kept_memory<10>(tiles * sizeof(bf16));
        bf16* right = (bf16*)kept_memory<11>(wide * tiles * sizeof(bf16));
        float* sums = (float*)kept_memory<12>((2 + (whole ? 0 : high * wide)) * BLOCK * sizeof(float));
        TILES();
        for (int64_t step = 0; step < steps; step += at_once) {
            const int64_t count = std::min(at_once, steps - step);
            const bool last = step + count == steps;
            for (int64_t column = first_column; column < last_column; column++)
                pack_right(right + (column - first_column) * tiles, b, depth, column * 32, step, count);
            float* sum = sums + 2 * BLOCK;
            for (int64_t row = first_row; row < last_row; row++) {
                const bool in_place = whole && !a.transposed && row * 32 + 32 <= rows;
                const bf16* x = in_place ? a.data + row * 32 * a.stride : left;
                const int64_t next = in_place ? 32 : 2 * TILE, lower = in_place ? 16 * a.stride : TILE;
                const int64_t stride = in_place ? a.stride * 2 : 64;
                if (!in_place) pack_left(left, a, rows, depth, row * 32, step, count);
                written();
                for (int64_t column = first_column; column < last_column; column++, sum += BLOCK) {
                    if (step == 0) {
                        ZERO_2X2();
                    } else {
                        MOVE_2X2(TILE_LOAD, sum, 16, 512, 128);
                    }
                    const bf16* y = right + (column - first_column) * tiles;
                    for (int64_t i = 0; i < count; i++, y += 2 * TILE) {
                        TILE_LOAD(4, x + i * next, stride);
                        TILE_LOAD(5, x + i * next + lower, stride);
                        TILE_LOAD(6, y, 64);
                        TILE_LOAD(7, y + TILE, 64);
                        MULTIPLY_2X2();
                    }
                    if (last && column > first_column) finish(row * 32, (column - 1) * 32, sums + (column - 1) % 2 * BLOCK);
                    float* to = last ? sums + column % 2 * BLOCK : sum;
                    MOVE_2X2(TILE_STORE, to, 16, 512, 128);
                    written();
                }
                if (last) finish(row * 32, (last_column - 1) * 32, sums + (last_column - 1) % 2 * BLOCK);
            }
        }
    }, end_tiles);
}
