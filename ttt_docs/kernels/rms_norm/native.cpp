// RMSNorm, forward and backward, each in one pass over memory.

#include <cmath>

#include "common.h"

namespace {
constexpr int64_t ROWS = 64;  // that a thread takes at a time

template <class Work>
void by_rows(int64_t rows, int64_t threads, Work work) {
    by_pieces(rows, ROWS, threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) work(row);
    });
}
}  // namespace

// out [rows, dim] = x / rms(x) * weight [dim]; scale [rows] = 1 / rms(x).
extern "C" void rms_norm_forward(int64_t rows, int64_t dim, float eps, const bf16* x, const bf16* weight, bf16* out,
                                 float* scale, int64_t threads) {
    by_rows(rows, threads, [=](int64_t row) {
        const bf16* from = x + row * dim;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t d = 0; d < dim; d += 16) {
            const __m512 a = load16(from + d);
            squares = _mm512_fmadd_ps(a, a, squares);
        }
        scale[row] = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / float(dim) + eps);
        for (int64_t d = 0; d < dim; d += 16)
            store16(out + row * dim + d, _mm512_mul_ps(_mm512_mul_ps(load16(from + d), load16(weight + d)),
                                                       _mm512_set1_ps(scale[row])));
    });
}

// grad_x = (g - x * mean(g * x) * scale^2) * scale with g = grad * weight.
extern "C" void rms_norm_backward(int64_t rows, int64_t dim, const bf16* grad, const bf16* x, const bf16* weight,
                                  const float* scale, bf16* grad_x, int64_t threads) {
    by_rows(rows, threads, [=](int64_t row) {
        const bf16 *from = x + row * dim, *g = grad + row * dim;
        __m512 along = _mm512_setzero_ps();
        for (int64_t d = 0; d < dim; d += 16)
            along = _mm512_fmadd_ps(_mm512_mul_ps(load16(g + d), load16(weight + d)), load16(from + d), along);
        const __m512 s = _mm512_set1_ps(scale[row]);
        const __m512 back = _mm512_set1_ps(_mm512_reduce_add_ps(along) / float(dim) * scale[row] * scale[row]);
        for (int64_t d = 0; d < dim; d += 16) {
            const __m512 weighted = _mm512_mul_ps(load16(g + d), load16(weight + d));
            store16(grad_x + row * dim + d, _mm512_mul_ps(_mm512_fnmadd_ps(load16(from + d), back, weighted), s));
        }
    });
}
