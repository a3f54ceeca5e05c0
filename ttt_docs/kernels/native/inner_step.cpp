// The fast weights' step: norms of gradients, then new weights and their copies for the products in one pass.

#include "tiles.h"

namespace {

template <class Work>
void by_pieces(int64_t count, int64_t size, int64_t threads, Work work) {
    auto nothing = [] {};
    parallel(up(count, size) / size, threads, nothing, [&](int64_t piece) {
        work(piece, piece * size, std::min((piece + 1) * size, count));
    }, nothing);
}

// Rounded to the nearest bfloat16, ties to even, as PyTorch does it: the processor's own instruction makes subnormal
// numbers zero, and weights must round to the same bits after they were saved and loaded. NaN is not looked after.
inline __m256i rounded(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
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

// after [count] = weights + size * grad, and the same in bfloat16; count is a multiple of 32. `after` is not read again
// before the next chunk, so it goes around the caches.
extern "C" void weight_step(int64_t count, const float* weights, const bf16* grad, float size, float* after,
                            bf16* product, int64_t threads) {
    by_pieces(count, 1 << 15, threads, [=](int64_t, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i += 16) {
            const __m512 x = _mm512_fmadd_ps(load16(grad + i), _mm512_set1_ps(size), _mm512_loadu_ps(weights + i));
            _mm512_stream_ps(after + i, x);
            _mm256_storeu_si256((__m256i*)(product + i), rounded(x));
        }
    });
}
