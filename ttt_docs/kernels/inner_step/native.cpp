// The fast weights' step: norms of gradients, then new weights and their copies for the products in one pass.

#include <algorithm>

#include "common.h"

namespace {

// Rounded to the nearest bfloat16, ties to even, as PyTorch does it: the processor's own instruction makes subnormal
// numbers zero, and weights must round to the same bits after they were saved and loaded. NaN is not looked after.
inline __m256i rounded(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}

// Sixteen weights after a step: kept, and rounded for the products. What is kept is not read again before the next
// chunk, so it goes around the caches.
inline void put(__m512 x, float* after, bf16* product) {
    _mm512_stream_ps(after, x);
    _mm256_storeu_si256((__m256i*)product, rounded(x));
}

}  // namespace

// sums: the sum of squares of each `size` numbers of x [count]; both are multiples of 32. Pieces do not depend on
// threads, so neither does what is made of their sums.
extern "C" void squares(int64_t count, int64_t size, const bf16* x, float* sums, int64_t threads) {
    by_pieces(count, size, threads, [=](int64_t piece, int64_t first, int64_t last) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int64_t i = first; i < last; i += 32) {
            const __m512 a = load16(x + i), b = load16(x + i + 16);
            even = _mm512_fmadd_ps(a, a, even);
            odd = _mm512_fmadd_ps(b, b, odd);
        }
        sums[piece] = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
    });
}

// Sums of squares of x [rows, columns]: by_row [rows], and by_column [pieces, columns] over each `size` rows.
extern "C" void squares_by_row_and_column(int64_t rows, int64_t columns, int64_t size, const bf16* x, float* by_row,
                                          float* by_column, int64_t threads) {
    by_pieces(rows, size, threads, [=](int64_t piece, int64_t first, int64_t last) {
        float* sums = by_column + piece * columns;
        std::fill(sums, sums + columns, 0.0f);
        for (int64_t row = first; row < last; ++row) {
            const bf16* own = x + row * columns;
            __m512 total = _mm512_setzero_ps();
            for (int64_t j = 0; j < columns; j += 16) {
                const __m512 a = load16(own + j), square = _mm512_mul_ps(a, a);
                total = _mm512_add_ps(total, square);
                _mm512_storeu_ps(sums + j, _mm512_add_ps(square, _mm512_loadu_ps(sums + j)));
            }
            by_row[row] = _mm512_reduce_add_ps(total);
        }
    });
}

// sums [rows]: of the squares of x [rows, columns], each number multiplied by its row's and its column's factor.
extern "C" void balanced_squares(int64_t rows, int64_t columns, const bf16* x, const float* of_rows,
                                 const float* of_columns, float* sums, int64_t threads) {
    by_pieces(rows, 64, threads, [=](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            __m512 total = _mm512_setzero_ps();
            for (int64_t j = 0; j < columns; j += 16) {
                const __m512 a = _mm512_mul_ps(load16(x + row * columns + j), _mm512_loadu_ps(of_columns + j));
                total = _mm512_fmadd_ps(a, a, total);
            }
            sums[row] = _mm512_reduce_add_ps(total) * of_rows[row] * of_rows[row];
        }
    });
}

// after [count] = weights + size * grad, and the same in bfloat16; count is a multiple of 32.
extern "C" void weight_step(int64_t count, const float* weights, const bf16* grad, float size, float* after,
                            bf16* product, int64_t threads) {
    by_pieces(count, 1 << 15, threads, [=](int64_t, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i += 16)
            put(_mm512_fmadd_ps(load16(grad + i), _mm512_set1_ps(size), _mm512_loadu_ps(weights + i)), after + i,
                product + i);
    });
}

// The same for matrices [rows, columns], each number of the gradient multiplied by its row's and its column's factor.
extern "C" void balanced_step(int64_t rows, int64_t columns, const float* weights, const bf16* grad,
                              const float* of_rows, const float* of_columns, float size, float* after, bf16* product,
                              int64_t threads) {
    by_pieces(rows, 64, threads, [=](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const __m512 factor = _mm512_set1_ps(size * of_rows[row]);
            for (int64_t j = 0, i = row * columns; j < columns; j += 16, i += 16) {
                const __m512 g = _mm512_mul_ps(load16(grad + i), _mm512_loadu_ps(of_columns + j));
                put(_mm512_fmadd_ps(g, factor, _mm512_loadu_ps(weights + i)), after + i, product + i);
            }
        }
    });
}
