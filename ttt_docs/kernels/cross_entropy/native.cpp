// The loss of a linear head over a large vocabulary, and its gradient, without ever holding all logits.

#include <cmath>

#include "products.h"

namespace {
constexpr int64_t VOCABULARY = 4096;  // entries at a time
constexpr float LOG2_E = 1.44269504088896340736f;
}  // namespace

// For x [rows, dim] and head [vocabulary, dim]: total [rows], the sum of exp(logit) over the vocabulary; score [rows],
// the target's logit; and, unless null, mean [rows, dim], the sum of exp(logit) * head. Logits of language models stay
// far inside the range of exp; where total is not finite or next to nothing, the caller has to do with a shift.
extern "C" void cross_entropy(int64_t rows, int64_t vocabulary, int64_t dim, const bf16* x, const bf16* head,
                              const int64_t* targets, float* total, float* score, float* mean, int64_t threads) {
    const int64_t stride = VOCABULARY + 32;  // not a power of two: rows would share the caches' sets
    bf16* weights = (bf16*)kept_memory<20>(rows * stride * sizeof(bf16));
    const int64_t padded = up(rows, 32);
    float* sums = (float*)kept_memory<21>(VOCABULARY / 32 * padded * sizeof(float));  // [column blocks, rows]
    memset(total, 0, rows * sizeof(float));
    memset(score, 0, rows * sizeof(float));
    if (mean) memset(mean, 0, rows * dim * sizeof(float));
    for (int64_t first = 0; first < vocabulary; first += VOCABULARY) {
        const int64_t columns = std::min(VOCABULARY, vocabulary - first);
        const bf16* part = head + first * dim;
        product(rows, columns, dim, {x, dim}, {part, dim, true}, threads, [=](int64_t row, int64_t column, const float* block) {
            const int64_t count = std::min<int64_t>(32, rows - row);
            for (int64_t i = 0; i < count; i++) {
                const int64_t target = targets[row + i] - first - column;
                if (target >= 0 && target < 32) score[row + i] = block[i * 32 + target];
                const __m512 scale = _mm512_set1_ps(LOG2_E);
                const __m512 a = exp2(_mm512_mul_ps(_mm512_load_ps(block + i * 32), scale));
                const __m512 b = exp2(_mm512_mul_ps(_mm512_load_ps(block + i * 32 + 16), scale));
                sums[column / 32 * padded + row + i] = _mm512_reduce_add_ps(_mm512_add_ps(a, b));
                if (mean) _mm512_storeu_si512(weights + (row + i) * stride + column, narrow(a, b));
            }
        });
        for (int64_t column = 0; column < columns / 32; column++)
            for (int64_t row = 0; row < rows; row++) total[row] += sums[column * padded + row];
        if (!mean) continue;
        product(rows, dim, columns, {weights, stride}, {part, dim}, threads, [=](int64_t row, int64_t column, const float* block) {
            const int64_t count = std::min<int64_t>(32, rows - row);
            for (int64_t i = 0; i < count; i++)
                for (int half = 0; half < 32; half += 16) {
                    float* to = mean + (row + i) * dim + column + half;
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_load_ps(block + i * 32 + half)));
                }
        });
    }
}
