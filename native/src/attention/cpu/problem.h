#pragma once

#include "attention/cpu/llama-self-extend-attn-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

//
// the problem, as read from the sources of the node: its shapes, the tiles that it is cut into, and the cells that tokens see
//

namespace llama_self_extend_cpu {

constexpr int64_t N_ROWS_FEW      = 16;  // fewer rows than this have the form for few, see ops.h
constexpr int64_t N_CELLS_FEW     = 128; // worked on together
constexpr int64_t N_CELLS_MANY    = 64;
constexpr int64_t N_ROWS_TILE     = 192; // at most
constexpr int64_t N_PIECES        = 32;  // of all tiles; where tiles are fewer their cells are cut
constexpr int64_t N_BYTES_SCRATCH = 256*1024; // of a tile of rows, to fit into the second-level cache with its cells

constexpr float LOG2_E = 1.44269504f;

enum { FAR, NEAR, N_PARTS };

inline int64_t div_up(int64_t n, int64_t m) {
    return (n + m - 1)/m;
}

inline int64_t pad(int64_t n, int64_t m) {
    return div_up(n, m)*m;
}

struct attn_problem {
    const ggml_tensor * q[N_PARTS];
    const ggml_tensor * k[N_PARTS];
    const ggml_tensor * v[N_PARTS];
    const ggml_tensor * mask;
    const ggml_tensor * k_new; // nullptr: stored already
    const ggml_tensor * v_new;
    const ggml_tensor * sinks;

    int64_t n_embd_k;
    int64_t n_embd_v;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t n_tokens;
    int64_t n_stream;
    int64_t n_gqa; // query heads for each KV head
    int64_t n_tps; // tokens of a stream

    bool v_trans;
    bool few;

    explicit attn_problem(ggml_tensor * const * src) :
        q { src[LLAMA_SELF_EXTEND_SRC_Q_FAR], src[LLAMA_SELF_EXTEND_SRC_Q_NEAR] },
        k { src[LLAMA_SELF_EXTEND_SRC_K_FAR], src[LLAMA_SELF_EXTEND_SRC_K_NEAR] },
        v { src[LLAMA_SELF_EXTEND_SRC_V_FAR], src[LLAMA_SELF_EXTEND_SRC_V_NEAR] },
        mask (src[LLAMA_SELF_EXTEND_SRC_MASK]),
        k_new(src[LLAMA_SELF_EXTEND_SRC_AUX_0]),
        v_new(src[LLAMA_SELF_EXTEND_SRC_AUX_1]),
        sinks(src[LLAMA_SELF_EXTEND_SRC_SINKS]),
        n_embd_k (q[FAR]->ne[0]),
        n_embd_v (0),
        n_head   (q[FAR]->ne[1]),
        n_head_kv(k[FAR]->ne[1]),
        n_tokens (q[FAR]->ne[2]),
        n_stream (k[FAR]->ne[3]),
        n_gqa    (n_head/n_head_kv),
        n_tps    (n_tokens/n_stream),
        v_trans  (v[FAR]->nb[1] > v[FAR]->nb[2]),
        few      (is_few(n_head, n_head_kv, n_tps)) {
        n_embd_v = v[FAR]->ne[v_trans ? 2 : 0];
    }

    static bool is_few(int64_t n_head, int64_t n_head_kv, int64_t n_tps) {
        return n_tps*(n_head/n_head_kv) < N_ROWS_FEW;
    }

    // tokens of a tile, at most
    int64_t n_tokens_tile_max() const {
        if (few) {
            return n_tps;
        }
        const int64_t n_bytes_row = (n_embd_k + n_embd_v + N_CELLS_MANY)*sizeof(float);
        const int64_t n_rows      = std::clamp<int64_t>(N_BYTES_SCRATCH/n_bytes_row, N_ROWS_TILE/4, N_ROWS_TILE);

        return std::clamp<int64_t>(n_rows/n_gqa, 1, n_tps);
    }

    int64_t n_tiles(int64_t n_tokens_tile) const {
        return n_stream*(few ? 1 : n_head_kv)*div_up(n_tps, n_tokens_tile);
    }

    int64_t n_pieces_max() const {
        return std::max<int64_t>(1, N_PIECES/n_tiles(n_tokens_tile_max()));
    }

    // Tokens times pieces that there is room for: the most that a batch of no more tokens has, in one stream or in several.
    // The cells of a smaller batch may be cut into more pieces, and what is reserved for the largest has to be enough for it.
    int64_t n_tokens_pieces() const {
        attn_problem pr = *this;
        pr.n_stream = 1; // as many tokens in several streams make as many tiles or more

        int64_t res = 0;
        for (int64_t n = 1; n <= n_tokens; ++n) {
            pr.n_tokens = n;
            pr.n_tps    = n;
            pr.few      = is_few(n_head, n_head_kv, n);

            if (pr.n_pieces_max() > 1) {
                res = std::max(res, n*pr.n_pieces_max());
            }
        }
        return res;
    }

    // of a row of a piece: the sum that is not divided yet, maximum, sum of the weights
    int64_t n_partial() const {
        return n_embd_v + 2;
    }

    int64_t n_result() const {
        return n_embd_v*n_head*n_tokens;
    }

    const ggml_fp16_t * mask_row(int64_t token, int part, int64_t cell) const {
        const char * row = (const char *) mask->data + token%n_tps*mask->nb[1] + token/n_tps*mask->nb[3];

        return (const ggml_fp16_t *) row + (part == NEAR ? k[FAR]->ne[2] : 0) + cell;
    }

    float sink(int64_t head) const {
        return sinks ? ((const float *) sinks->data)[head]*LOG2_E : -INFINITY;
    }
};

struct attn_tile {
    int64_t head_kv; // the first
    int64_t n_head_kv;
    int64_t stream;
    int64_t token0; // of the batch
    int64_t n_tokens;
};

// a range of cells
struct span {
    int64_t begin;
    int64_t end;

    int64_t size() const {
        return std::max<int64_t>(0, end - begin);
    }

    span clip(span other) const {
        return { std::max(begin, other.begin), std::min(end, other.end) };
    }
};

inline span live_span(const llama_self_extend_range & range, int part) {
    return part == FAR ? span { range.far_begin, range.far_end } : span { range.near_begin, range.near_end };
}

// the cells that any token of the tile sees
inline span live_span(const llama_self_extend_attn_params & params, const attn_tile & tile, int part) {
    span res = { INT64_MAX, 0 };
    for (int64_t t = tile.token0; t < tile.token0 + tile.n_tokens; ++t) {
        const span cur = live_span(params.ranges[t], part);
        if (cur.size() > 0) {
            res = { std::min(res.begin, cur.begin), std::max(res.end, cur.end) };
        }
    }
    return res.size() > 0 ? res : span { 0, 0 };
}

// call dead(j) for the cells that a token does not see, of n_cells after cell0
template <typename F>
void for_dead(const attn_problem & pr, const llama_self_extend_range & range, int64_t token, int part, int64_t cell0, int64_t n_cells, const F & dead) {
    const span live = live_span(range, part).clip({ cell0, cell0 + n_cells });

    const int64_t begin = live.size() > 0 ? live.begin - cell0 : n_cells;
    const int64_t end   = live.size() > 0 ? live.end   - cell0 : n_cells;

    for (int64_t j = 0; j < begin; ++j) {
        dead(j);
    }
    if (!(part == FAR ? range.far_dense : range.near_dense)) {
        const ggml_fp16_t * mask = pr.mask_row(token, part, cell0);
        for (int64_t j = begin; j < end; ++j) {
            if (mask[j] != 0) {
                dead(j);
            }
        }
    }
    for (int64_t j = end; j < n_cells; ++j) {
        dead(j);
    }
}

} // namespace llama_self_extend_cpu
