// Matrix products, and SwiGLU's two halves with their element-wise work inside the products.

#include <sys/syscall.h>
#include <unistd.h>

#include "products.h"

namespace {

// 1 / (1 + exp(-x)) to 6e-5, thirty times finer than what bfloat16 holds.
inline __m512 sigmoid(__m512 x) {
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1), exp2(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)))));
}

}  // namespace

// out [rows, columns] = a [rows, depth] times b [depth, columns]; strides are of matrices as they lie in memory, which
// `_transposed` marks as transposes of the operands.
extern "C" void multiply(int64_t rows, int64_t columns, int64_t depth, const bf16* a, int64_t a_stride,
                         int64_t a_transposed, const bf16* b, int64_t b_stride, int64_t b_transposed, bf16* out,
                         int64_t out_stride, int64_t threads) {
    product(rows, columns, depth, {a, a_stride, a_transposed != 0}, {b, b_stride, b_transposed != 0}, threads,
            [=](int64_t row, int64_t column, const float* block) {
                const int64_t count = std::min<int64_t>(32, rows - row);
                for (int64_t i = 0; i < count; i++)
                    _mm512_storeu_si512(out + (row + i) * out_stride + column,
                                        narrow(_mm512_load_ps(block + i * 32), _mm512_load_ps(block + i * 32 + 16)));
            });
}

// out [rows, columns] = a [rows, depth] times the transpose of b [columns, depth] for at most 16 rows. b is the left
// operand here, so that it is read once and as it lies; columns and depth are multiples of 32.
extern "C" void multiply_few(int64_t rows, int64_t columns, int64_t depth, const bf16* a, const bf16* b, bf16* out,
                             int64_t threads) {
    constexpr int64_t ITEM = 96;  // columns
    const int64_t steps = depth / 32;
    bf16* packed = (bf16*)kept_memory<13>(steps * TILE * sizeof(bf16));
    for (int64_t step = 0; step < steps; step++) across(packed + step * TILE, a + step * 32, depth, rows);
    parallel(up(columns, ITEM) / ITEM, threads, begin_tiles, [=](int64_t item) {
        alignas(64) float sums[2][256];
        TILES();
        for (int64_t column = item * ITEM; column < std::min((item + 1) * ITEM, columns); column += 32) {
            const bf16* from = b + column * depth;
            written();
            TILE_ZERO(0);
            TILE_ZERO(1);
            for (int64_t step = 0; step < steps; step++, from += 32) {
                for (int64_t ahead = 32; ahead < 64; ahead++) fetch(from + ahead * depth);
                TILE_LOAD(4, from, depth * 2);
                TILE_LOAD(5, from + 16 * depth, depth * 2);
                TILE_LOAD(6, packed + step * TILE, 64);
                TILE_MULTIPLY(0, 4, 6);
                TILE_MULTIPLY(1, 5, 6);
            }
            TILE_STORE(0, sums[0], 64);
            TILE_STORE(1, sums[1], 64);
            written();
            for (int half = 0; half < 2; half++) {
                __m512i x[16];
                for (int i = 0; i < 16; i++) x[i] = _mm512_load_si512(sums[half] + i * 16);
                transpose16(x);
                for (int64_t i = 0; i < rows; i++) store16(out + i * columns + column + half * 16, (__m512)x[i]);
            }
        }
    }, end_tiles);
}

// activated [rows, hidden] = silu(gate) * up, where gate and up [rows, hidden] are x [rows, dim] times the transposes of
// w1 and w3 [hidden, dim]. `both` [rows, 2 * hidden] keeps gate beside up for the backward pass; it may be null. It is
// not needed soon, so it goes around the caches. Rows are `stride` and `both_stride` apart.
extern "C" void swiglu_forward(int64_t rows, int64_t hidden, int64_t dim, const bf16* x, const bf16* w1, const bf16* w3,
                               bf16* both, int64_t both_stride, bf16* activated, int64_t stride, int64_t threads) {
    product(rows, 2 * hidden, dim, {x, dim}, {w1, dim, true, w3}, threads,
            [=](int64_t row, int64_t column, const float* block) {
                if (column % 64 == 0) return;  // gate: up comes next
                const int64_t count = std::min<int64_t>(32, rows - row), at = column / 64 * 32;
                for (int64_t i = 0; i < count; i++) {
                    __m512 gate[2], up[2], out[2];
                    for (int half = 0; half < 2; half++) {
                        gate[half] = _mm512_load_ps(block - BLOCK + i * 32 + half * 16);
                        up[half] = _mm512_load_ps(block + i * 32 + half * 16);
                        out[half] = _mm512_mul_ps(_mm512_mul_ps(gate[half], sigmoid(gate[half])), up[half]);
                    }
                    _mm512_store_si512(activated + (row + i) * stride + at, narrow(out[0], out[1]));
                    if (both) {
                        bf16* to = both + (row + i) * both_stride + at;
                        _mm512_stream_si512((__m512i*)to, narrow(gate[0], gate[1]));
                        _mm512_stream_si512((__m512i*)(to + hidden), narrow(up[0], up[1]));
                    }
                }
            });
}

// grad_both [rows, 2 * hidden]: the gradient of gate beside that of up, from grad [rows, dim] behind w2 [dim, hidden].
// Rows of `both` and `grad_both` are `stride` apart.
extern "C" void swiglu_backward(int64_t rows, int64_t hidden, int64_t dim, const bf16* grad, const bf16* w2,
                                const bf16* both, bf16* grad_both, int64_t stride, int64_t threads) {
    product(rows, hidden, dim, {grad, dim}, {w2, hidden}, threads, [=](int64_t row, int64_t column, const float* block) {
        const int64_t count = std::min<int64_t>(32, rows - row);
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = (row + i) * stride + column;
            fetch(both + at + 32);
            fetch(both + at + hidden + 32);
            __m512 grad_gate[2], grad_up[2];
            for (int half = 0; half < 2; half++) {
                const __m512 g = _mm512_load_ps(block + i * 32 + half * 16), gate = load16(both + at + half * 16);
                const __m512 up = load16(both + at + hidden + half * 16), s = sigmoid(gate);
                const __m512 silu = _mm512_mul_ps(gate, s);
                const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(_mm512_set1_ps(1), s), s);
                grad_gate[half] = _mm512_mul_ps(g, _mm512_mul_ps(up, slope));
                grad_up[half] = _mm512_mul_ps(g, silu);
            }
            _mm512_store_si512(grad_both + at, narrow(grad_gate[0], grad_gate[1]));
            _mm512_store_si512(grad_both + at + hidden, narrow(grad_up[0], grad_up[1]));
        }
    });
}

// Linux hands out tile registers only on request; 0 if this process may use them, or needs none.
extern "C" int allow_tiles() {
#ifdef __AMX_BF16__
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return int(syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA));
#else
    return 0;
#endif
}
