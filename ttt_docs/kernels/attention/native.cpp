// Causal window attention: forward, and the gradient for queries and for the newest keys and values.
//
// What it computes is defined by window_attention_reference in definition.py; bfloat16 in and out, float32 inside.
// A thread takes 32 positions of all query heads that share a key head and goes along the keys they see, 32 at a time:
// tiles multiply queries and keys, AVX-512 makes exponentials of the scores while the next tiles multiply, and other
// tiles multiply those with the values. Scores never leave the first-level cache.
//
// Scores are not shifted by their row's largest, as float32 and bfloat16 hold exponentials of any that models make;
// where a row's sum shows otherwise, its tile is done again with the shift.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tiles.h"

namespace {

// A bfloat16 tensor [batch, heads, rows, head_dim]: strides in elements, head_dim contiguous.
struct Matrix {
    bf16* data;
    int64_t batch, head, row;
    bf16* at(int64_t b, int64_t h, int64_t r) const { return data + b * batch + h * head + r * row; }
};

}  // namespace

// One call's arguments; cpu.py makes them as numbers of 64 bits, in this order.
struct Attention {
    int64_t batch, heads, kv_heads, queries, keys, head_dim, window, sinks;
    Matrix q, k, v, sink_q, sink_k, sink_v, out, grad, grad_q, grad_k, grad_v, grad_sink_q;
    const uint8_t* hidden;  // [queries, sinks], 1 where the sink is still inside the window; may be null
    float* lse;             // [batch, heads, queries]: log-sum-exp of the scores of everything a query saw
    int64_t threads;        // set below
};

namespace {

constexpr int ROWS = 32;           // queries of a block: two tiles
constexpr int FORWARD_KEYS = 256;  // keys whose exponentials are kept before they meet the values
constexpr int BACKWARD_KEYS = 128;
constexpr float LOG2_E = 1.44269504088896340736f;

// Tiles 0 to 3 = a [32, D] times b [D, 32 keys], b packed tile by tile as [2, D / 32, TILE].
template <int D>
inline void scores_of(const bf16* a, const bf16* b) {
    TILES();
    ZERO_2X2();
    for (int d = 0; d < D / 32; d++) {
        TILE_LOAD(4, a + d * 32, D * 2);
        TILE_LOAD(5, a + 16 * D + d * 32, D * 2);
        TILE_LOAD(6, b + d * TILE, 64);
        TILE_LOAD(7, b + (D / 32 + d) * TILE, 64);
        MULTIPLY_2X2();
    }
}

inline void store_scores(float* to) {
    TILES();
    MOVE_2X2(TILE_STORE, to, 16, 16 * 32, 128);
    written();
}

// sum [32, D] += a [32, 32 * steps] (row stride in bytes) times b, packed as [steps, D / 16, TILE].
template <int D>
inline void accumulate(float* sum, const bf16* a, int64_t stride, const bf16* b, int64_t steps) {
    TILES();
    written();
    for (int d = 0; d < D / 16; d += 2) {
        float* corner = sum + d * 16;
        MOVE_2X2(TILE_LOAD, corner, 16, 16 * D, D * 4);
        for (int64_t step = 0; step < steps; step++) {
            TILE_LOAD(4, a + step * 32, stride);
            TILE_LOAD(5, (const char*)(a + step * 32) + 16 * stride, stride);
            TILE_LOAD(6, b + (step * (D / 16) + d) * TILE, 64);
            TILE_LOAD(7, b + (step * (D / 16) + d + 1) * TILE, 64);
            MULTIPLY_2X2();
        }
        MOVE_2X2(TILE_STORE, corner, 16, 16 * D, D * 4);
    }
    written();
}

// ---- Packing. ----

// 16 keys [., D] from memory, of which `rows` exist, as the right operand of scores: [D / 32, TILE].
template <int D>
void pack_across(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
    for (int d = 0; d < D; d += 32) across(to + d / 32 * TILE, from + d, stride, rows);
}

// 32 keys [., D], of which `rows` exist, as the right operand of a sum over keys: [D / 16, TILE].
template <int D>
void pack_along(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
    for (int d = 0; d < D; d += 16) along(to + d / 16 * TILE, from + d, stride, rows);
}

// [32, D] of which `rows` exist, copied; the others are zero.
template <int D>
void copy_rows(bf16* to, const bf16* from, int64_t stride, int64_t rows) {
    for (int i = 0; i < ROWS; i++, to += D)
        if (i < rows)
            memcpy(to, from + i * stride, D * 2);
        else
            memset(to, 0, D * 2);
}

// x [32, D] as [D, 32].
template <int D>
void transpose(bf16* to, const bf16* x) {
    for (int d = 0; d < D; d += 16) transposed(to + d * 32, x + d, D, 32);
}

template <int D>
float dot(const bf16* a, const bf16* b) {
    __m512 sum = _mm512_setzero_ps();
    for (int d = 0; d < D; d += 16) sum = _mm512_fmadd_ps(load16(a + d), load16(b + d), sum);
    return _mm512_reduce_add_ps(sum);
}

// ---- What both directions share. ----

// 32 queries of one head.
struct Block {
    int64_t head, position, rows;  // first query, and how many of the 32 exist
    int64_t first_key, last_key;   // all that any of them sees, in steps of 32
};

struct View {
    const Attention& c;
    int64_t batch, kv_head;
    int64_t cached() const { return c.keys - c.queries; }
    Block block(int64_t head, int64_t position) const {
        const int64_t rows = std::min<int64_t>(ROWS, c.queries - position);
        const int64_t first = std::max<int64_t>(0, cached() + position - c.window + 1);
        return {head, position, rows, down(first, 32), up(cached() + position + rows, 32)};
    }
    bool sees_sink(int64_t position, int64_t sink) const {
        return !c.hidden || !c.hidden[position * c.sinks + sink];
    }
};

// Which of the 16 keys from `key` on the query at key position `query` sees.
inline __mmask16 visible(int64_t key, int64_t query, int64_t window) {
    const int64_t last = std::clamp<int64_t>(query - key + 1, 0, 16);
    const int64_t first = std::clamp<int64_t>(query - window + 1 - key, 0, 16);
    return __mmask16(((1u << last) - 1) & ~((1u << first) - 1));
}

// True if all 32 queries from `query` on see all 32 keys from `key` on.
inline bool inside(int64_t key, int64_t query, int64_t window) {
    return key + 31 <= query && key > query + ROWS - 1 - window;
}

// ---- Forward. ----

template <int D>
struct ForwardBlock : Block {
    alignas(64) bf16 q[ROWS * D];
    alignas(64) float out[ROWS * D];
    alignas(64) float sums[ROWS * 16];
    alignas(64) float shift[ROWS];  // in powers of two
    alignas(64) float scores[2][ROWS * 32];
    alignas(64) bf16 weights[ROWS * FORWARD_KEYS];
};

// weights [32, 32 of FORWARD_KEYS] = exp(scores - shift), and each row's part of the sum.
template <int D>
void exponentials(ForwardBlock<D>& x, const float* scores, bf16* weights, int64_t key, const Attention& c) {
    const int64_t query = c.keys - c.queries + x.position;
    const bool edge = !inside(key, query, c.window);
    const __m512 scale = _mm512_set1_ps(LOG2_E / std::sqrt(float(D)));
    for (int row = 0; row < ROWS; row++) {
        const __m512 shift = _mm512_set1_ps(x.shift[row]);
        __m512 a = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + row * 32), scale, shift));
        __m512 b = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + row * 32 + 16), scale, shift));
        if (edge) {
            a = _mm512_maskz_mov_ps(visible(key, query + row, c.window), a);
            b = _mm512_maskz_mov_ps(visible(key + 16, query + row, c.window), b);
        }
        float* sum = x.sums + row * 16;
        _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(a, b)));
        _mm512_store_si512(weights + row * FORWARD_KEYS, narrow(a, b));
    }
}

// Adds the values of keys [first, last) to a block's output.
template <int D>
void attend(ForwardBlock<D>& x, int64_t first, int64_t last, const bf16* k, const bf16* v, const Attention& c) {
    scores_of<D>(x.q, k + first * D);
    store_scores(x.scores[0]);
    for (int64_t key = first, now = 0; key < last; key += 32, now ^= 1) {
        const bool more = key + 32 < last;
        if (more) scores_of<D>(x.q, k + (key + 32) * D);  // runs while the exponentials of this step are made
        exponentials(x, x.scores[now], x.weights + (key - first), key, c);
        if (more) store_scores(x.scores[now ^ 1]);
    }
    accumulate<D>(x.out, x.weights, FORWARD_KEYS * 2, v + first * D, (last - first) / 32);
}

// The largest score of each row, sinks included, for the rare tile that needs it.
template <int D>
void find_shift(ForwardBlock<D>& x, const bf16* k, const View& view) {
    const Attention& c = view.c;
    const int64_t query = view.cached() + x.position;
    const float scale = LOG2_E / std::sqrt(float(D));
    __m512 most[ROWS];
    for (auto& m : most) m = _mm512_set1_ps(-INFINITY);
    for (int64_t key = x.first_key; key < x.last_key; key += 32) {
        written();
        scores_of<D>(x.q, k + key * D);
        store_scores(x.scores[0]);
        for (int row = 0; row < ROWS; row++)
            for (int half = 0; half < 32; half += 16) {
                const __m512 s = _mm512_load_ps(x.scores[0] + row * 32 + half);
                most[row] = _mm512_mask_max_ps(most[row], visible(key + half, query + row, c.window), most[row], s);
            }
    }
    for (int row = 0; row < x.rows; row++) {
        float largest = _mm512_reduce_max_ps(most[row]);
        for (int64_t s = 0; s < c.sinks; s++)
            if (view.sees_sink(x.position + row, s))
                largest = std::max(largest, dot<D>(c.sink_q.at(view.batch, x.head, x.position + row),
                                                   c.sink_k.at(view.batch, view.kv_head, s)));
        x.shift[row] = largest * scale;
    }
}

// Adds the sinks, divides by the sum, writes output and log-sum-exp. False where a sum left float32's range.
template <int D>
bool finish(ForwardBlock<D>& x, const View& view) {
    const Attention& c = view.c;
    const float scale = LOG2_E / std::sqrt(float(D));
    bool good = true;
    for (int row = 0; row < x.rows; row++) {
        const int64_t position = x.position + row;
        float total = _mm512_reduce_add_ps(_mm512_load_ps(x.sums + row * 16));
        __m512 sum[D / 16];
        for (int d = 0; d < D / 16; d++) sum[d] = _mm512_load_ps(x.out + row * D + d * 16);
        for (int64_t s = 0; s < c.sinks; s++) {
            if (!view.sees_sink(position, s)) continue;
            const float score = dot<D>(c.sink_q.at(view.batch, x.head, position), c.sink_k.at(view.batch, view.kv_head, s));
            const float weight = std::exp2(score * scale - x.shift[row]);
            total += weight;
            const bf16* value = c.sink_v.at(view.batch, view.kv_head, s);
            for (int d = 0; d < D / 16; d++)
                sum[d] = _mm512_fmadd_ps(_mm512_set1_ps(weight), load16(value + d * 16), sum[d]);
        }
        good = good && total > 1e-30f && total < 1e30f;
        const __m512 share = _mm512_set1_ps(1 / total);
        bf16* out = c.out.at(view.batch, x.head, position);
        for (int d = 0; d < D / 16; d++) store16(out + d * 16, _mm512_mul_ps(sum[d], share));
        c.lse[(view.batch * c.heads + x.head) * c.queries + position] = x.shift[row] / LOG2_E + std::log(total);
    }
    return good;
}

// Blocks of the same positions go along the keys together.
template <int D>
void forward_blocks(ForwardBlock<D>* blocks, int64_t count, const bf16* k, const bf16* v, const View& view) {
    for (auto* x = blocks; x < blocks + count; x++) {
        memset(x->out, 0, sizeof x->out);
        memset(x->sums, 0, sizeof x->sums);
    }
    written();
    for (int64_t key = blocks->first_key; key < blocks->last_key; key += FORWARD_KEYS)
        for (auto* x = blocks; x < blocks + count; x++)
            attend(*x, key, std::min(key + FORWARD_KEYS, x->last_key), k, v, view.c);
}

template <int D>
void forward(const Attention& c) {
    const int64_t padded = up(c.keys, 32), pieces = padded / 32, share = 16, group = c.heads / c.kv_heads;
    const int64_t tiles = up(c.queries, ROWS) / ROWS, size = padded * D;
    bf16* packed = (bf16*)kept_memory<0>(c.kv_heads * 2 * size * sizeof(bf16));
    for (int64_t b = 0; b < c.batch; b++) {
        const int64_t parts = up(pieces, share) / share;
        parallel(c.kv_heads * parts, c.threads, [&](int64_t item) {
            const int64_t head = item / parts, begin = item % parts * share * 32;
            bf16 *k = packed + head * 2 * size, *v = k + size;
            for (int64_t key = begin; key < std::min(begin + share * 32, padded); key += 32) {
                pack_across<D>(k + key * D, c.k.at(b, head, key), c.k.row, c.keys - key);
                pack_across<D>(k + (key + 16) * D, c.k.at(b, head, key + 16), c.k.row, c.keys - key - 16);
                pack_along<D>(v + key * D, c.v.at(b, head, key), c.v.row, c.keys - key);
            }
        });
        parallel(c.kv_heads * tiles, c.threads, begin_tiles, [&](int64_t item) {
            const View view{c, b, item / tiles};
            const bf16 *k = packed + view.kv_head * 2 * size, *v = k + size;
            auto* blocks = (ForwardBlock<D>*)kept_memory<1>(group * sizeof(ForwardBlock<D>));
            for (int64_t i = 0; i < group; i++) {
                (Block&)blocks[i] = view.block(view.kv_head * group + i, item % tiles * ROWS);
                copy_rows<D>(blocks[i].q, c.q.at(b, blocks[i].head, blocks[i].position), c.q.row, blocks[i].rows);
                memset(blocks[i].shift, 0, sizeof blocks[i].shift);
            }
            forward_blocks(blocks, group, k, v, view);
            for (int64_t i = 0; i < group; i++) {
                if (finish(blocks[i], view)) continue;
                find_shift(blocks[i], k, view);
                forward_blocks(blocks + i, 1, k, v, view);
                finish(blocks[i], view);
            }
        }, end_tiles);
    }
}

// ---- Backward. ----

template <int D>
struct BackwardBlock : Block {
    alignas(64) bf16 q[ROWS * D], grad[ROWS * D];
    alignas(64) bf16 transposed_q[D * ROWS], transposed_grad[D * ROWS];
    alignas(64) float lse[ROWS], delta[ROWS];  // log-sum-exp in powers of two; D = rowsum(dO * O)
    alignas(64) float grad_q[ROWS * D];
    alignas(64) float scores[ROWS * 32], grad_weights[ROWS * 32];
    alignas(64) bf16 grad_scores[ROWS * BACKWARD_KEYS];
    // The newest keys' columns as right operands of sums over queries: [keys / 16, TILE], pairs along queries.
    alignas(64) bf16 paired_weights[BACKWARD_KEYS / 16 * TILE], paired_grad_scores[BACKWARD_KEYS / 16 * TILE];
};

template <int D>
void load(BackwardBlock<D>& x, const View& view) {
    const Attention& c = view.c;
    copy_rows<D>(x.q, c.q.at(view.batch, x.head, x.position), c.q.row, x.rows);
    copy_rows<D>(x.grad, c.grad.at(view.batch, x.head, x.position), c.grad.row, x.rows);
    transpose<D>(x.transposed_q, x.q);
    transpose<D>(x.transposed_grad, x.grad);
    memset(x.grad_q, 0, sizeof x.grad_q);
    for (int row = 0; row < ROWS; row++) {
        const int64_t position = x.position + row;
        const bool real = row < x.rows;
        x.delta[row] = real ? dot<D>(x.grad + row * D, c.out.at(view.batch, x.head, position)) : 0;
        x.lse[row] = real ? c.lse[(view.batch * c.heads + x.head) * c.queries + position] * LOG2_E : 0;
    }
}

// One 32x32 step: P = exp(S - log-sum-exp), dS = P * (dP - D).
template <int D>
void grad_step(BackwardBlock<D>& x, int64_t column, int64_t key, bool newest, const Attention& c) {
    const int64_t query = c.keys - c.queries + x.position;
    const bool edge = !inside(key, query, c.window);
    const __m512 scale = _mm512_set1_ps(LOG2_E / std::sqrt(float(D)));
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int row = 0; row < ROWS; row += 2) {
        __m512 p[2][2], ds[2][2];  // [row][half of the keys]
        for (int i = 0; i < 2; i++)
            for (int half = 0; half < 2; half++) {
                const int at = (row + i) * 32 + half * 16;
                const __m512 lse = _mm512_set1_ps(x.lse[row + i]), delta = _mm512_set1_ps(x.delta[row + i]);
                p[i][half] = exp2(_mm512_fmsub_ps(_mm512_load_ps(x.scores + at), scale, lse));
                if (edge)
                    p[i][half] = _mm512_maskz_mov_ps(visible(key + half * 16, query + row + i, c.window), p[i][half]);
                ds[i][half] = _mm512_mul_ps(p[i][half], _mm512_sub_ps(_mm512_load_ps(x.grad_weights + at), delta));
            }
        for (int i = 0; i < 2; i++)
            _mm512_store_si512(x.grad_scores + (row + i) * BACKWARD_KEYS + column, narrow(ds[i][0], ds[i][1]));
        if (newest)
            for (int half = 0; half < 2; half++) {
                const int64_t at = (column / 16 + half) * TILE + row * 16;
                _mm512_store_si512(x.paired_weights + at, _mm512_permutexvar_epi16(pairs, narrow(p[0][half], p[1][half])));
                _mm512_store_si512(x.paired_grad_scores + at,
                                   _mm512_permutexvar_epi16(pairs, narrow(ds[0][half], ds[1][half])));
            }
    }
}

// sum [2 keys / 16, D / 16, 16 x 16] += transposed [D, 32 queries] times paired, over all blocks.
template <int D, class Operands>
void accumulate_keys(float* sum, BackwardBlock<D>* blocks, int64_t count, Operands operands) {
    constexpr int STEP = D / 16 * 256;
    TILES();
    for (int d = 0; d < D / 16; d += 2) {
        float* corner = sum + d * 256;
        MOVE_2X2(TILE_LOAD, corner, STEP, 256, 64);
        for (auto* x = blocks; x < blocks + count; x++) {
            auto [left, right] = operands(*x);
            TILE_LOAD(4, left + d * 16 * ROWS, ROWS * 2);
            TILE_LOAD(5, left + (d + 1) * 16 * ROWS, ROWS * 2);
            TILE_LOAD(6, right, 64);
            TILE_LOAD(7, right + TILE, 64);
            MULTIPLY_2X2();
        }
        MOVE_2X2(TILE_STORE, corner, STEP, 256, 64);
    }
}

// Writes the gradients of a block's queries, and of the queries as the sinks saw them.
template <int D>
void finish(BackwardBlock<D>& x, const View& view) {
    const Attention& c = view.c;
    const float scale = 1 / std::sqrt(float(D));
    for (int row = 0; row < x.rows; row++) {
        const int64_t position = x.position + row;
        bf16* to = c.grad_q.at(view.batch, x.head, position);
        for (int d = 0; d < D; d += 16)
            store16(to + d, _mm512_mul_ps(_mm512_load_ps(x.grad_q + row * D + d), _mm512_set1_ps(scale)));
        if (!c.sinks) continue;
        __m512 sum[D / 16];
        for (auto& s : sum) s = _mm512_setzero_ps();
        for (int64_t s = 0; s < c.sinks; s++) {
            if (!view.sees_sink(position, s)) continue;
            const bf16* key = c.sink_k.at(view.batch, view.kv_head, s);
            const float score = dot<D>(c.sink_q.at(view.batch, x.head, position), key);
            const float weight = std::exp2(score * scale * LOG2_E - x.lse[row]);
            const float grad_weight = dot<D>(x.grad + row * D, c.sink_v.at(view.batch, view.kv_head, s));
            const __m512 grad_score = _mm512_set1_ps(weight * (grad_weight - x.delta[row]) * scale);
            for (int d = 0; d < D / 16; d++) sum[d] = _mm512_fmadd_ps(grad_score, load16(key + d * 16), sum[d]);
        }
        bf16* sink_to = c.grad_sink_q.at(view.batch, x.head, position);
        for (int d = 0; d < D / 16; d++) store16(sink_to + d * 16, sum[d]);
    }
}

// 32 keys as backward takes them: K across, V across, K along.
template <int D>
struct PackedKeys {
    bf16 k[32 * D], v[32 * D], along[32 * D];
};

template <int D>
void backward(const Attention& c) {
    const int64_t pieces = up(c.keys, 32) / 32, share = 16, group = c.heads / c.kv_heads;
    const int64_t tiles = up(c.queries, ROWS) / ROWS, cached = c.keys - c.queries, first_own = down(cached, 32);
    // A key head's tiles are dealt to a fixed number of sums, so that results do not depend on threads.
    const int64_t deals = std::min(tiles, std::max<int64_t>(1, 12 / c.kv_heads));
    const int64_t own = (pieces * 32 - first_own) * D;  // floats of one sum, for keys or for values
    auto* packed = (PackedKeys<D>*)kept_memory<0>(c.kv_heads * pieces * sizeof(PackedKeys<D>));
    float* sums = (float*)kept_memory<2>(c.kv_heads * deals * 2 * own * sizeof(float));
    for (int64_t b = 0; b < c.batch; b++) {
        const int64_t parts = up(pieces, share) / share;
        parallel(c.kv_heads * parts, c.threads, [&](int64_t item) {
            const int64_t head = item / parts, begin = item % parts * share;
            for (int64_t i = begin; i < std::min(begin + share, pieces); i++) {
                auto& to = packed[head * pieces + i];
                const int64_t key = i * 32, rows = c.keys - key;
                for (int half = 0; half < 32; half += 16) {
                    pack_across<D>(to.k + half * D, c.k.at(b, head, key + half), c.k.row, rows - half);
                    pack_across<D>(to.v + half * D, c.v.at(b, head, key + half), c.v.row, rows - half);
                }
                pack_along<D>(to.along, c.k.at(b, head, key), c.k.row, rows);
            }
        });
        parallel(c.kv_heads * deals, c.threads, begin_tiles, [&](int64_t item) {
            const View view{c, b, item / deals};
            const auto* keys = packed + view.kv_head * pieces;
            float *sum_k = sums + item * 2 * own, *sum_v = sum_k + own;
            memset(sum_k, 0, 2 * own * sizeof(float));
            auto* blocks = (BackwardBlock<D>*)kept_memory<1>(group * sizeof(BackwardBlock<D>));
            for (int64_t tile = item % deals; tile < tiles; tile += deals) {
                for (int64_t i = 0; i < group; i++) {
                    (Block&)blocks[i] = view.block(view.kv_head * group + i, tile * ROWS);
                    load(blocks[i], view);
                }
                const int64_t first = blocks[0].first_key, last = blocks[0].last_key;
                for (int64_t begin = first; begin < last; begin += BACKWARD_KEYS) {
                    const int64_t end = std::min(begin + BACKWARD_KEYS, last);
                    for (auto* x = blocks; x < blocks + group; x++) {
                        for (int64_t key = begin; key < end; key += 32) {
                            written();
                            scores_of<D>(x->q, keys[key / 32].k);
                            store_scores(x->scores);
                            scores_of<D>(x->grad, keys[key / 32].v);
                            store_scores(x->grad_weights);
                            grad_step(*x, key - begin, key, key >= first_own, c);
                        }
                        for (int64_t key = begin; key < end; key += 32)
                            accumulate<D>(x->grad_q, x->grad_scores + (key - begin), BACKWARD_KEYS * 2,
                                          keys[key / 32].along, 1);
                    }
                    for (int64_t key = std::max(begin, first_own); key < end; key += 32) {
                        const int64_t at = (key - begin) / 16 * TILE;
                        accumulate_keys(sum_k + (key - first_own) * D, blocks, group, [&](BackwardBlock<D>& x) {
                            return std::pair(x.transposed_q, x.paired_grad_scores + at);
                        });
                        accumulate_keys(sum_v + (key - first_own) * D, blocks, group, [&](BackwardBlock<D>& x) {
                            return std::pair(x.transposed_grad, x.paired_weights + at);
                        });
                    }
                }
                for (int64_t i = 0; i < group; i++) finish(blocks[i], view);
            }
        }, end_tiles);
        // Sums of all deals, in order; 16 keys at a time transposed back from [D, keys].
        const int64_t groups = (pieces * 32 - first_own) / 16;
        parallel(c.kv_heads * 2 * groups, c.threads, [&](int64_t item) {
            const int64_t head = item / groups / 2, which = item / groups % 2, key = first_own + item % groups * 16;
            const Matrix& to = which ? c.grad_v : c.grad_k;
            const __m512 scale = _mm512_set1_ps(which ? 1 : 1 / std::sqrt(float(D)));
            for (int d = 0; d < D; d += 16) {
                __m512i x[16];
                for (int i = 0; i < 16; i++) {
                    __m512 sum = _mm512_setzero_ps();
                    for (int64_t deal = 0; deal < deals; deal++)
                        sum = _mm512_add_ps(sum, _mm512_load_ps(sums + ((head * deals + deal) * 2 + which) * own +
                                                               (key - first_own) * D + d * 16 + i * 16));
                    x[i] = (__m512i)_mm512_mul_ps(sum, scale);
                }
                transpose16(x);
                for (int i = 0; i < 16; i++)
                    if (key + i >= cached && key + i < c.keys)
                        store16(to.at(b, head, key + i - cached) + d, (__m512)x[i]);
            }
        });
    }
}

}  // namespace

// cpu.py has no other head_dim.
#define BY_HEAD_DIM(function)                        \
    call->threads = threads;                         \
    switch (call->head_dim) {                        \
        case 32: return function<32>(*call);         \
        case 64: return function<64>(*call);         \
        case 96: return function<96>(*call);         \
        case 128: return function<128>(*call);       \
    }
extern "C" void window_attention_forward(Attention* call, int64_t threads) { BY_HEAD_DIM(forward) }
extern "C" void window_attention_backward(Attention* call, int64_t threads) { BY_HEAD_DIM(backward) }
