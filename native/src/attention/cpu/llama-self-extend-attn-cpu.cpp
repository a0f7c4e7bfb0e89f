#include "attention/cpu/llama-self-extend-attn-cpu.h"

#include "attention/cpu/ops.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

//
// One node computes the attention of a layer. The running maximum and the running sum pass from the far part to the near
// part: this is what makes it one softmax.
//
// The work is cut into tiles: the query heads of a KV head for some tokens, or, if there are only few rows (decode), all
// heads. Where that makes too few, the cells of a tile are cut into pieces as well, and the thread that is the last to end a
// piece of a tile puts the pieces together. Threads take the next piece when they have done one, as tiles differ in how many
// cells they see and threads in how fast they are. What a row is summed up from, and in which order, does not depend on the
// number of threads: more threads get smaller tiles or fewer heads, never other pieces.
//
// If there are only few rows, whoever takes a piece first stores the new cells that lie in it. A store of its own would be
// one more node at which all threads have to meet, and one token's attention takes hardly longer than that.
//

namespace {

constexpr int64_t N_ROWS_FEW      = 16;  // fewer rows than this have the form for few, see ops.h
constexpr int64_t N_CELLS_FEW     = 128; // worked on together
constexpr int64_t N_CELLS_READ    = 32;  // of one head after the other
constexpr int64_t N_CELLS_MANY    = 64;
constexpr int64_t N_CELLS_PIECE   = 256; // at least
constexpr int64_t N_ROWS_TILE     = 192; // at most
constexpr int64_t N_PIECES        = 32;  // of all tiles; where tiles are fewer their cells are cut
constexpr int64_t N_BYTES_SCRATCH = 256*1024; // of a tile of rows, to fit into the second-level cache with its cells

constexpr float LOG2_E = 1.44269504f;

enum { FAR, NEAR, N_PARTS };

int64_t div_up(int64_t n, int64_t m) {
    return (n + m - 1)/m;
}

int64_t pad(int64_t n, int64_t m) {
    return div_up(n, m)*m;
}

void scale(float * x, int64_t n, float a) {
    for (int64_t i = 0; i < n; ++i) {
        x[i] *= a;
    }
}

//
// the problem, as read from the sources of the node
//

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

span live_span(const llama_self_extend_range & range, int part) {
    return part == FAR ? span { range.far_begin, range.far_end } : span { range.near_begin, range.near_end };
}

// the cells that any token of the tile sees
span live_span(const llama_self_extend_attn_params & params, const attn_tile & tile, int part) {
    span res = { INT64_MAX, 0 };
    for (int64_t t = tile.token0; t < tile.token0 + tile.n_tokens; ++t) {
        const span cur = live_span(params.ranges[t], part);
        if (cur.size() > 0) {
            res = { std::min(res.begin, cur.begin), std::max(res.end, cur.end) };
        }
    }
    return res.size() > 0 ? res : span { 0, 0 };
}

// rows of the cache, or unpacked ones
struct rows_of {
    ggml_type    type;
    const char * data;
    size_t       stride;
};

// the working set of a thread
struct attn_work {
    const attn_problem &                  pr;
    const llama_self_extend_attn_params & params;
    const llama_self_extend_attn_op &     op;
    const llama_self_extend_ops &         ops;

    int64_t ldk; // n_embd_k and n_embd_v, padded to whole vectors
    int64_t ldv;

    float * q[N_PARTS];
    float * s;
    float * o;
    float * m; // [n_rows] running maximum
    float * l; // [n_rows] running sum
    float * k; // [n_cells, ldk]
    float * v; // [n_cells, ldv] or [n_embd_v, n_cells]

    // n_rows: of a tile, n_cells: worked on together
    attn_work(const attn_problem & pr, const llama_self_extend_attn_params & params, const llama_self_extend_attn_op & op,
            const llama_self_extend_ops & ops, int64_t n_rows, int64_t n_cells) :
        pr(pr), params(params), op(op), ops(ops), ldk(pad(pr.n_embd_k, ops.n_vec)), ldv(pad(pr.n_embd_v, ops.n_vec)) {
        n_rows = pad(n_rows, ops.n_vec);

        // a custom node has no work buffer of its own
        static thread_local std::vector<float> buf;

        constexpr int64_t align = 64/sizeof(float);

        const size_t n = (2*ldk + n_cells + ldv + 2)*n_rows + n_cells*(ldk + ldv) + 9*align;
        if (buf.size() < n) {
            buf.resize(n);
        }

        float * p = buf.data();
        const auto take = [&](int64_t n) {
            float * res = (float *) ((uintptr_t(p) + 63)/64*64);
            p = res + n;
            return res;
        };

        q[FAR]  = take(ldk*n_rows);
        q[NEAR] = take(ldk*n_rows);
        s       = take(n_cells*n_rows);
        o       = take(ldv*n_rows);
        m       = take(n_rows);
        l       = take(n_rows);
        k       = take(n_cells*ldk);
        v       = take(n_cells*ldv);
    }

    void begin(int64_t n_rows) {
        std::fill_n(o, ldv*n_rows, 0.0f);
        std::fill_n(m, n_rows, -INFINITY);
        std::fill_n(l, n_rows, 0.0f);
    }

    // what the scores are multiplied by is in Q already
    float q_scale() const {
        return op.logit_softcap != 0.0f ? op.scale/op.logit_softcap : op.scale*LOG2_E;
    }

    void softcap(float * x, int64_t n) const {
        if (op.logit_softcap != 0.0f) {
            ops.softcap(x, n, op.logit_softcap*LOG2_E);
        }
    }

    const float * q_src(int part, int64_t head, int64_t token) const {
        return (const float *) ((const char *) pr.q[part]->data + head*pr.q[part]->nb[1] + token*pr.q[part]->nb[2]);
    }

    char * k_at(int part, int64_t head_kv, int64_t stream, int64_t cell) const {
        const ggml_tensor * t = pr.k[part];

        return (char *) t->data + head_kv*t->nb[1] + cell*t->nb[2] + stream*t->nb[3];
    }

    char * v_at(int part, int64_t head_kv, int64_t stream, int64_t cell) const {
        const ggml_tensor * t = pr.v[part];

        return (char *) t->data + head_kv*t->nb[1] + cell*t->nb[pr.v_trans ? 0 : 2] + stream*t->nb[3];
    }

    // n cells of a head, unpacked if they cannot be read as they are
    rows_of k_rows(int part, int64_t head_kv, int64_t stream, int64_t cell, int64_t n) const {
        return rows(pr.k[part], k_at(part, head_kv, stream, cell), n, pr.n_embd_k, k, ldk);
    }

    rows_of v_rows(int part, int64_t head_kv, int64_t stream, int64_t cell, int64_t n) const {
        return rows(pr.v[part], v_at(part, head_kv, stream, cell), n, pr.n_embd_v, v, ldv);
    }

private:
    rows_of rows(const ggml_tensor * t, const char * src, int64_t n, int64_t n_embd, float * dst, int64_t ld) const {
        if (ops.reads(t->type)) {
            return { t->type, src, t->nb[2] };
        }
        for (int64_t j = 0; j < n; ++j) {
            ops.unpack(t->type, src + j*t->nb[2], dst + j*ld, n_embd);
        }
        return { GGML_TYPE_F32, (const char *) dst, size_t(ld)*sizeof(float) };
    }
};

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

//
// few rows: row (head, token) of the tile at (head*n_tokens + token)
//

void attend_few(attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells) {
    const auto & pr  = w.pr;
    const auto & ops = w.ops;

    const ggml_tensor * v = pr.v[part];

    const int64_t n_rows_kv = pr.n_gqa*tile.n_tokens; // of a KV head
    const int64_t n_padded  = pad(n_cells, ops.n_vec);

    // all heads of some cells, then the next cells: so memory is read from one end to the other
    for (int64_t j = 0; j < n_cells; j += N_CELLS_READ) {
        const int64_t n = std::min(N_CELLS_READ, n_cells - j);

        for (int64_t h = 0; h < tile.n_head_kv; ++h) {
            const rows_of cells = w.k_rows(part, tile.head_kv + h, tile.stream, cell0 + j, n);

            ops.dot_rows(cells.type, cells.data, cells.stride, n, pr.n_embd_k,
                    w.q[part] + h*n_rows_kv*w.ldk, w.ldk, n_rows_kv, w.s + h*n_rows_kv*N_CELLS_FEW + j, N_CELLS_FEW, false);
        }
    }

    for (int64_t r = 0; r < tile.n_head_kv*n_rows_kv; ++r) {
        const int64_t token = tile.token0 + r%tile.n_tokens;

        float * s = w.s + r*N_CELLS_FEW;

        w.softcap(s, n_padded);

        for_dead(pr, w.params.ranges[token], token, part, cell0, n_cells, [&](int64_t j) { s[j] = -INFINITY; });
        std::fill(s + n_cells, s + n_padded, -INFINITY);

        const float corr = ops.softmax_row(s, n_padded, w.m + r, w.l + r);
        if (corr != 1.0f) {
            scale(w.o + r*w.ldv, w.ldv, corr);
        }
    }

    if (pr.v_trans) {
        for (int64_t h = 0; h < tile.n_head_kv; ++h) {
            ops.dot_rows(v->type, w.v_at(part, tile.head_kv + h, tile.stream, cell0), v->nb[2], pr.n_embd_v, n_cells,
                    w.s + h*n_rows_kv*N_CELLS_FEW, N_CELLS_FEW, n_rows_kv, w.o + h*n_rows_kv*w.ldv, w.ldv, true);
        }
        return;
    }

    for (int64_t j = 0; j < n_cells; j += N_CELLS_READ) {
        const int64_t n = std::min(N_CELLS_READ, n_cells - j);

        for (int64_t h = 0; h < tile.n_head_kv; ++h) {
            const rows_of cells = w.v_rows(part, tile.head_kv + h, tile.stream, cell0 + j, n);

            ops.add_rows(cells.type, cells.data, cells.stride, n, pr.n_embd_v,
                    w.s + h*n_rows_kv*N_CELLS_FEW + j, N_CELLS_FEW, n_rows_kv, w.o + h*n_rows_kv*w.ldv, w.ldv);
        }
    }
}

void begin_few(attn_work & w, const attn_tile & tile) {
    const float   q_scale = w.q_scale();
    const int64_t n_rows  = tile.n_head_kv*w.pr.n_gqa*tile.n_tokens;

    w.begin(n_rows);

    for (int part = 0; part < N_PARTS; ++part) {
        for (int64_t r = 0; r < n_rows; ++r) {
            const float * src = w.q_src(part, tile.head_kv*w.pr.n_gqa + r/tile.n_tokens, tile.token0 + r%tile.n_tokens);
            float *       dst = w.q[part] + r*w.ldk;

            for (int64_t d = 0; d < w.pr.n_embd_k; ++d) {
                dst[d] = src[d]*q_scale;
            }
            std::fill(dst + w.pr.n_embd_k, dst + w.ldk, 0.0f);
        }
    }
}

//
// many rows: row (token, head) of the tile at (token*n_gqa + head), in panels
//

struct panel {
    int64_t row0;
    int64_t n_rows; // of the tile
    int64_t n_pad;  // whole vectors
};

panel panel_at(const attn_work & w, const attn_tile & tile, int64_t i) {
    const int64_t row0   = i*w.ops.n_panel;
    const int64_t n_rows = std::min(w.ops.n_panel, tile.n_tokens*w.pr.n_gqa - row0);

    return { row0, n_rows, pad(n_rows, w.ops.n_vec) };
}

int64_t n_panels(const attn_work & w, const attn_tile & tile) {
    return div_up(tile.n_tokens*w.pr.n_gqa, w.ops.n_panel);
}

void begin_many(attn_work & w, const attn_tile & tile) {
    const float q_scale = w.q_scale();

    w.begin(pad(tile.n_tokens*w.pr.n_gqa, w.ops.n_vec));

    for (int part = 0; part < N_PARTS; ++part) {
        for (int64_t i = 0; i < n_panels(w, tile); ++i) {
            const panel p = panel_at(w, tile, i);

            float * dst = w.q[part] + p.row0*w.ldk;
            std::fill_n(dst, p.n_pad*w.ldk, 0.0f);

            for (int64_t r = 0; r < p.n_rows; ++r) {
                const int64_t row = p.row0 + r;
                const float * src = w.q_src(part, tile.head_kv*w.pr.n_gqa + row%w.pr.n_gqa, tile.token0 + row/w.pr.n_gqa);

                for (int64_t d = 0; d < w.pr.n_embd_k; ++d) {
                    dst[d*p.n_pad + r] = src[d]*q_scale;
                }
            }
        }
    }
}

void attend_many(attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells) {
    const auto & pr  = w.pr;
    const auto & ops = w.ops;

    const ggml_tensor * k = pr.k[part];
    const ggml_tensor * v = pr.v[part];

    for (int64_t j = 0; j < n_cells; ++j) {
        ops.unpack(k->type, w.k_at(part, tile.head_kv, tile.stream, cell0 + j), w.k + j*w.ldk, pr.n_embd_k);
    }
    for (int64_t j = 0; j < (pr.v_trans ? pr.n_embd_v : n_cells); ++j) {
        if (pr.v_trans) {
            ops.unpack(v->type, w.v_at(part, tile.head_kv, tile.stream, cell0) + j*v->nb[2], w.v + j*N_CELLS_MANY, n_cells);
        } else {
            ops.unpack(v->type, w.v_at(part, tile.head_kv, tile.stream, cell0 + j), w.v + j*w.ldv, pr.n_embd_v);
        }
    }

    for (int64_t i = 0; i < n_panels(w, tile); ++i) {
        const panel p = panel_at(w, tile, i);

        // the tokens of the panel
        const int64_t t0 = p.row0/pr.n_gqa;
        const int64_t t1 = (p.row0 + p.n_rows - 1)/pr.n_gqa;

        bool live = false;
        for (int64_t t = t0; t <= t1 && !live; ++t) {
            live = live_span(w.params.ranges[tile.token0 + t], part).clip({ cell0, cell0 + n_cells }).size() > 0;
        }
        if (!live) {
            continue;
        }

        float * o = w.o + p.row0*w.ldv;

        ops.gemm(w.s, w.k, w.ldk, 1, w.q[part] + p.row0*w.ldk, n_cells, pr.n_embd_k, p.n_pad, false);

        w.softcap(w.s, n_cells*p.n_pad);

        for (int64_t t = t0; t <= t1; ++t) {
            const int64_t r0 = std::max<int64_t>(0,        (t + 0)*pr.n_gqa - p.row0);
            const int64_t r1 = std::min<int64_t>(p.n_rows, (t + 1)*pr.n_gqa - p.row0);

            for_dead(pr, w.params.ranges[tile.token0 + t], tile.token0 + t, part, cell0, n_cells, [&](int64_t j) {
                std::fill(w.s + j*p.n_pad + r0, w.s + j*p.n_pad + r1, -INFINITY);
            });
        }

        ops.softmax_panel(w.s, n_cells, p.n_pad, w.m + p.row0, w.l + p.row0, o, pr.n_embd_v);
        ops.gemm(o, w.v, pr.v_trans ? N_CELLS_MANY : 1, pr.v_trans ? 1 : w.ldv, w.s, pr.n_embd_v, n_cells, p.n_pad, true);
    }
}

//
// pieces
//

// the cells of both parts that a tile sees, laid end to end
struct attn_cells {
    span    live[N_PARTS];
    int64_t n_piece;  // cells of a piece
    int64_t n_pieces;

    attn_cells(const attn_problem & pr, const llama_self_extend_attn_params & params, const attn_tile & tile) {
        int64_t n = 0;
        for (int part = 0; part < N_PARTS; ++part) {
            live[part] = live_span(params, tile, part);
            n += live[part].size();
        }

        n_piece  = std::max(pad(div_up(n, pr.n_pieces_max()), N_CELLS_MANY), N_CELLS_PIECE);
        n_pieces = std::max<int64_t>(1, div_up(n, n_piece));
    }
};

// store the new cells of the near part that lie in a span: as ggml_set_rows() does, rounded by the same functions
void store_new(const attn_work & w, const attn_tile & tile, span cells) {
    const auto & pr = w.pr;

    const ggml_tensor * v = pr.v[NEAR];

    const auto k_from_float = ggml_get_type_traits_cpu(pr.k[NEAR]->type)->from_float;
    const auto v_from_float = ggml_get_type_traits_cpu(v->type)->from_float;

    for (int64_t t = tile.token0; t < tile.token0 + tile.n_tokens; ++t) {
        const int64_t cell = w.params.ranges[t].near_new;

        if (cell < cells.begin || cell >= cells.end) {
            continue;
        }

        for (int64_t h = tile.head_kv; h < tile.head_kv + tile.n_head_kv; ++h) {
            const auto * k_src = (const float *) ((const char *) pr.k_new->data + h*pr.k_new->nb[1] + t*pr.k_new->nb[2]);
            const auto * v_src = (const float *) ((const char *) pr.v_new->data + h*pr.v_new->nb[1] + t*pr.v_new->nb[2]);

            char * v_dst = w.v_at(NEAR, h, tile.stream, cell);

            k_from_float(k_src, w.k_at(NEAR, h, tile.stream, cell), pr.n_embd_k);

            if (!pr.v_trans) {
                v_from_float(v_src, v_dst, pr.n_embd_v);
                continue;
            }

            v_from_float(v_src, w.v, pr.n_embd_v);
            for (int64_t d = 0; d < pr.n_embd_v; ++d) {
                memcpy(v_dst + d*v->nb[2], (const char *) w.v + d*v->nb[0], v->nb[0]);
            }
        }
    }
}

void attend(attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells) {
    w.pr.few ? attend_few(w, tile, part, cell0, n_cells) : attend_many(w, tile, part, cell0, n_cells);
}

// the same for a tile of one token, without the cells that it does not see
void attend_live(attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells) {
    int64_t begin = 0;

    const auto end_run = [&](int64_t end) {
        if (end > begin) {
            attend(w, tile, part, cell0 + begin, end - begin);
        }
        begin = end + 1;
    };

    for_dead(w.pr, w.params.ranges[tile.token0], tile.token0, part, cell0, n_cells, end_run);
    end_run(n_cells);
}

void attend_piece(attn_work & w, const attn_tile & tile, const attn_cells & cells, int64_t i, bool live_only) {
    const auto & pr = w.pr;

    pr.few ? begin_few(w, tile) : begin_many(w, tile);

    span piece = { i*cells.n_piece, (i + 1)*cells.n_piece };

    for (int part = 0; part < N_PARTS; ++part) {
        const span    live = cells.live[part];
        const span    cur  = span { piece.begin + live.begin, piece.end + live.begin }.clip(live);
        const int64_t step = pr.few ? N_CELLS_FEW : N_CELLS_MANY;

        if (part == NEAR && pr.k_new) {
            store_new(w, tile, cur);
        }

        // cut where cells are cut whatever the tile, so that the sums of a row do not depend on its tile
        for (int64_t j = cur.begin; j < cur.end; ) {
            const int64_t end = std::min(cur.end, (j/step + 1)*step);

            live_only ? attend_live(w, tile, part, j, end - j) : attend(w, tile, part, j, end - j);
            j = end;
        }

        piece = { piece.begin - live.size(), piece.end - live.size() };
    }
}

// divide by the sum, in which a sink takes part
float result_scale(float m, float l, float sink) {
    if (sink > -INFINITY) {
        const float m_new = std::max(m, sink);

        const float scale = exp2f(m - m_new);

        return scale/(l*scale + exp2f(sink - m_new));
    }
    return l > 0.0f ? 1.0f/l : 0.0f;
}

float * result_at(ggml_tensor * dst, const attn_problem & pr, int64_t token, int64_t head) {
    return (float *) dst->data + (token*pr.n_head + head)*pr.n_embd_v;
}

float * partial_at(ggml_tensor * dst, const attn_problem & pr, int64_t piece, int64_t token, int64_t head) {
    return (float *) dst->data + pr.n_result() + ((piece*pr.n_tokens + token)*pr.n_head + head)*pr.n_partial();
}

// where a row of a piece goes
float * stored_at(ggml_tensor * dst, const attn_problem & pr, const attn_cells & cells, int64_t piece, int64_t token, int64_t head) {
    return cells.n_pieces == 1 ? result_at(dst, pr, token, head) : partial_at(dst, pr, piece, token, head);
}

void store_piece(ggml_tensor * dst, attn_work & w, const attn_tile & tile, const attn_cells & cells, int64_t piece) {
    const auto & pr = w.pr;

    for (int64_t r = 0; r < tile.n_tokens*tile.n_head_kv*pr.n_gqa; ++r) {
        const int64_t token = tile.token0 + (pr.few ? r%tile.n_tokens : r/pr.n_gqa);
        const int64_t head  = tile.head_kv*pr.n_gqa + (pr.few ? r/tile.n_tokens : r%pr.n_gqa);

        const float * o    = w.o + r*w.ldv;
        int64_t       step = 1;

        if (!pr.few) {
            const panel p = panel_at(w, tile, r/w.ops.n_panel);

            o    = w.o + p.row0*w.ldv + (r - p.row0);
            step = p.n_pad;
        }

        float *     out   = stored_at(dst, pr, cells, piece, token, head);
        const float scale = cells.n_pieces == 1 ? result_scale(w.m[r], w.l[r], pr.sink(head)) : 1.0f;

        for (int64_t d = 0; d < pr.n_embd_v; ++d) {
            out[d] = o[d*step]*scale;
        }
        if (cells.n_pieces > 1) {
            out[pr.n_embd_v + 0] = w.m[r];
            out[pr.n_embd_v + 1] = w.l[r];
        }
    }
}

bool has_nan(ggml_tensor * dst, const attn_problem & pr, const attn_tile & tile, const attn_cells & cells, int64_t piece, int64_t token) {
    bool res = false;
    for (int64_t head = tile.head_kv*pr.n_gqa; head < (tile.head_kv + tile.n_head_kv)*pr.n_gqa; ++head) {
        const float * x = stored_at(dst, pr, cells, piece, token, head);

        for (int64_t d = 0; d < pr.n_embd_v; ++d) {
            res |= std::isnan(x[d]);
        }
    }
    return res;
}

void compute_piece(ggml_tensor * dst, attn_work & w, const attn_tile & tile, const attn_cells & cells, int64_t piece) {
    attend_piece(w, tile, cells, piece, false);
    store_piece (dst, w, tile, cells, piece);

    // A V that overflowed is infinite, and the weight 0 of a token that does not see it makes NaN of it. No token may be
    // spoiled by what it does not see: a later one, another sequence, or what was there before.
    for (int64_t token = tile.token0; token < tile.token0 + tile.n_tokens; ++token) {
        const auto & range = w.params.ranges[token];

        if (tile.n_tokens == 1 && range.far_dense && range.near_dense) {
            break; // there was nothing else
        }
        for (int64_t head_kv = tile.head_kv; head_kv < tile.head_kv + tile.n_head_kv; ++head_kv) {
            const attn_tile alone = { head_kv, 1, tile.stream, token, 1 };

            if (has_nan(dst, w.pr, alone, cells, piece, token)) {
                attend_piece(w, alone, cells, piece, true);
                store_piece (dst, w, alone, cells, piece);
            }
        }
    }
}

void join_pieces(ggml_tensor * dst, const attn_problem & pr, const attn_tile & tile, const attn_cells & cells) {
    for (int64_t token = tile.token0; token < tile.token0 + tile.n_tokens; ++token) {
        for (int64_t head = tile.head_kv*pr.n_gqa; head < (tile.head_kv + tile.n_head_kv)*pr.n_gqa; ++head) {
            float m = -INFINITY;
            for (int64_t i = 0; i < cells.n_pieces; ++i) {
                m = std::max(m, partial_at(dst, pr, i, token, head)[pr.n_embd_v]);
            }

            float * out = result_at(dst, pr, token, head);
            std::fill_n(out, pr.n_embd_v, 0.0f);

            float l = 0.0f;
            for (int64_t i = 0; i < cells.n_pieces; ++i) {
                const float * cur    = partial_at(dst, pr, i, token, head);
                const float   m_cur  = cur[pr.n_embd_v];
                const float   weight = m_cur == m ? 1.0f : exp2f(m_cur - m); // both may be -INFINITY

                l += weight*cur[pr.n_embd_v + 1];
                for (int64_t d = 0; d < pr.n_embd_v; ++d) {
                    out[d] += weight*cur[d];
                }
            }

            scale(out, pr.n_embd_v, result_scale(m, l, pr.sink(head)));
        }
    }
}

//
// the node
//

// dst: the result [n_embd_v, n_head, n_tokens], then the partial results [n_partial, n_head, n_tokens, n_pieces]
void compute_attn(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(ith);

    const attn_problem pr(dst->src);

    auto &       params = *(llama_self_extend_attn_params *) userdata;
    const auto & ops    = params.ops ? *params.ops : **llama_self_extend_ops_list();

    const int64_t n_pieces_max = pr.n_pieces_max();

    // smaller tiles if there are not enough for all threads
    int64_t n_tokens_tile = pr.n_tokens_tile_max();
    while (n_pieces_max == 1 && n_tokens_tile > 16 && pr.n_tiles(n_tokens_tile) < 4*nth) {
        n_tokens_tile = (n_tokens_tile + 1)/2;
    }

    const int64_t n_head_kv_tile = pr.few ? pr.n_head_kv : 1;
    const int64_t n_tiles_tokens = div_up(pr.n_tps, n_tokens_tile);

    llama_self_extend_attn_op op;
    GGML_ASSERT(llama_self_extend_attn_get_op(dst, op));

    attn_work w(pr, params, op, ops, n_tokens_tile*n_head_kv_tile*pr.n_gqa, pr.few ? N_CELLS_FEW : N_CELLS_MANY);

    for (;;) {
        const int64_t i = params.n_taken.fetch_add(1, std::memory_order_relaxed);

        const int64_t i_tile = i/n_pieces_max;
        const int64_t i_unit = i%n_pieces_max;

        if (i_tile >= pr.n_tiles(n_tokens_tile)) {
            break;
        }

        attn_tile tile;

        tile.n_head_kv = n_head_kv_tile;
        tile.head_kv   = i_tile%(pr.n_head_kv/n_head_kv_tile);
        tile.stream    = i_tile/(pr.n_head_kv/n_head_kv_tile)/n_tiles_tokens;
        tile.token0    = i_tile/(pr.n_head_kv/n_head_kv_tile)%n_tiles_tokens*n_tokens_tile;
        tile.n_tokens  = std::min(n_tokens_tile, pr.n_tps - tile.token0);
        tile.token0   += tile.stream*pr.n_tps;

        const attn_cells cells(pr, params, tile);

        // heads apart if there are not enough pieces for all threads
        const int64_t n_wanted = div_up(nth, cells.n_pieces*pr.n_tiles(n_tokens_tile));
        const int64_t n_heads  = div_up(tile.n_head_kv, std::clamp<int64_t>(n_wanted, 1, n_pieces_max/cells.n_pieces));
        const int64_t n_units  = div_up(tile.n_head_kv, n_heads)*cells.n_pieces;

        if (i_unit >= n_units) {
            continue;
        }

        attn_tile unit = tile;

        unit.head_kv  += i_unit/cells.n_pieces*n_heads;
        unit.n_head_kv = std::min(n_heads, tile.head_kv + tile.n_head_kv - unit.head_kv);

        compute_piece(dst, w, unit, cells, i_unit%cells.n_pieces);

        if (cells.n_pieces > 1) {
            auto & n_arrived = params.n_arrived[i_tile];

            // acquire what the others have stored, release what this thread has
            if (n_arrived.fetch_add(1, std::memory_order_acq_rel) == n_units - 1) {
                n_arrived.store(0, std::memory_order_relaxed);
                join_pieces(dst, pr, tile, cells);
            }
        }
    }

    // the threads meet before the next node is computed
    if (params.n_done.fetch_add(1, std::memory_order_relaxed) == nth - 1) {
        params.n_taken.store(0, std::memory_order_relaxed);
        params.n_done .store(0, std::memory_order_relaxed);
    }
}

} // namespace

const char * llama_self_extend_attn_isa() {
    return llama_self_extend_ops_list()[0]->name;
}

bool llama_self_extend_attn_can_store(const ggml_tensor * q, const ggml_tensor * k) {
    return attn_problem::is_few(q->ne[1], k->ne[1], q->ne[2]/k->ne[3]);
}

ggml_tensor * llama_self_extend_attn_build(
        ggml_context                  * ctx,
        ggml_tensor * const             src[LLAMA_SELF_EXTEND_N_SRC],
        float                           scale,
        float                           logit_softcap,
        llama_self_extend_attn_params * params) {
    const attn_problem pr(src);

    for (int part = 0; part < N_PARTS; ++part) {
        const ggml_tensor * q = pr.q[part];
        const ggml_tensor * k = pr.k[part];
        const ggml_tensor * v = pr.v[part];

        GGML_ASSERT(q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && ggml_are_same_shape(q, pr.q[FAR]));
        GGML_ASSERT(k->nb[0] == ggml_type_size(k->type) && k->ne[0] == pr.n_embd_k && k->ne[1] == pr.n_head_kv && k->ne[3] == pr.n_stream);
        GGML_ASSERT(v->nb[0] == ggml_type_size(v->type) && v->ne[1] == pr.n_head_kv && v->ne[3] == pr.n_stream);
        GGML_ASSERT((v->nb[1] > v->nb[2]) == pr.v_trans && v->ne[pr.v_trans ? 2 : 0] == pr.n_embd_v && v->ne[pr.v_trans ? 0 : 2] == k->ne[2]);
        GGML_ASSERT(!pr.v_trans || !ggml_is_quantized(v->type));
    }
    GGML_ASSERT(pr.n_head % pr.n_head_kv == 0 && pr.n_tokens % pr.n_stream == 0);
    GGML_ASSERT(pr.mask->type == GGML_TYPE_F16 && pr.mask->ne[0] == pr.k[FAR]->ne[2] + pr.k[NEAR]->ne[2] && pr.mask->ne[1] == pr.n_tps && pr.mask->ne[3] == pr.n_stream);
    GGML_ASSERT(!pr.sinks || (pr.sinks->type == GGML_TYPE_F32 && pr.sinks->ne[0] == pr.n_head));

    if (pr.k_new) {
        GGML_ASSERT(pr.few && pr.k_new->type == GGML_TYPE_F32 && pr.v_new->type == GGML_TYPE_F32);
        GGML_ASSERT(pr.k_new->nb[0] == sizeof(float) && pr.k_new->ne[0] == pr.n_embd_k && pr.k_new->ne[1] == pr.n_head_kv && pr.k_new->ne[2] == pr.n_tokens);
        GGML_ASSERT(pr.v_new->nb[0] == sizeof(float) && pr.v_new->ne[0] == pr.n_embd_v && pr.v_new->ne[1] == pr.n_head_kv && pr.v_new->ne[2] == pr.n_tokens);
    }

    const int64_t n_pieces = pr.n_pieces_max();

    if (n_pieces > 1) {
        params->n_arrived = std::make_unique<std::atomic<int32_t>[]>(pr.n_tiles(pr.n_tokens_tile_max()));
    }

    ggml_tensor * node = llama_self_extend_attn_new_node(ctx, src, scale, logit_softcap, pr.n_embd_v,
            n_pieces > 1 ? pr.n_partial()*pr.n_head*pr.n_tokens*n_pieces : 0, compute_attn, params);

    return ggml_view_3d(ctx, node, pr.n_embd_v, pr.n_head, pr.n_tokens,
            pr.n_embd_v*sizeof(float), pr.n_embd_v*pr.n_head*sizeof(float), 0);
}
