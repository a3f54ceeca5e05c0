// What the sources here share: bfloat16 in AVX-512 registers, and work spread over the threads that PyTorch has.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

using bf16 = uint16_t;

// PyTorch's OpenMP runtime (libgomp, or libiomp5, which has this entry too). It is in the process already; a second
// pool of threads beside it would fight for the same cores. Without it, work is done on the calling thread.
extern "C" void GOMP_parallel(void (*)(void*), void*, unsigned threads, unsigned flags) __attribute__((weak));

// Calls work(item) for every item below `items`, on `threads` threads; each thread calls begin() first, end() last.
// Which thread gets an item is left to chance, so no result may depend on it.
template <class Begin, class Work, class End>
void parallel(int64_t items, int64_t threads, Begin begin, Work work, End end) {
    struct Job {
        std::atomic<int64_t> next{0};
        int64_t items;
        Begin& begin;
        Work& work;
        End& end;
    } job{{0}, items, begin, work, end};
    auto run = [](void* data) {
        Job& job = *static_cast<Job*>(data);
        int64_t item = job.next++;
        if (item >= job.items) return;
        job.begin();
        for (; item < job.items; item = job.next++) job.work(item);
        job.end();
    };
    if (GOMP_parallel && threads > 1 && items > 1)
        GOMP_parallel(run, &job, unsigned(threads < items ? threads : items), 0);
    else
        run(&job);
}

template <class Work>
void parallel(int64_t items, int64_t threads, Work work) {
    auto nothing = [] {};
    parallel(items, threads, nothing, work, nothing);
}

// Calls work(piece, first, last) for pieces of `size` of `count` things. Pieces do not depend on threads, so neither do
// results that are made piece by piece.
template <class Work>
void by_pieces(int64_t count, int64_t size, int64_t threads, Work work) {
    parallel((count + size - 1) / size, threads, [&](int64_t piece) {
        const int64_t last = (piece + 1) * size;
        work(piece, piece * size, last < count ? last : count);
    });
}

// Memory of one thread, kept between calls: fresh pages cost more than the work done in them.
template <int NAME>
void* kept_memory(size_t bytes) {
    struct Buffer {
        void* data = nullptr;
        size_t size = 0;
        ~Buffer() { free(data); }
    };
    static thread_local Buffer buffer;
    if (buffer.size < bytes) {
        free(buffer.data);
        buffer.size = (bytes + 4095) / 4096 * 4096;
        buffer.data = aligned_alloc(4096, buffer.size);
        if (!buffer.data) abort();
    }
    return buffer.data;
}

static inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
static inline __m512 load16(const bf16* x) { return widen(_mm256_loadu_si256((const __m256i*)x)); }
static inline void store16(bf16* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }
// 32 numbers, `low` first.
static inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// 2^x to 4e-6: x is cut into floor(x), applied to the exponent, and a rest in [0, 1), for which a polynomial does.
static inline __m512 exp2(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, 0x09);
    __m512 y = _mm512_set1_ps(0.01353414f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.05201149f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.24144276f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.69300383f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.00000259f));
    return _mm512_scalef_ps(y, x);
}
