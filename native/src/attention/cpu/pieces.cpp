#include "attention/cpu/pieces.h"

#include "attention/cpu/rows.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace llama_self_extend_cpu {

constexpr int64_t N_CELLS_PIECE = 256; // at least

attn_cells::attn_cells(const attn_problem & pr, const llama_self_extend_attn_params & params, const attn_tile & tile) {
    int64_t n = 0;
    for (int part = 0; part < N_PARTS; ++part) {
        live[part] = live_span(params, tile, part);
        n += live[part].size();
    }

    n_piece  = std::max(pad(div_up(n, pr.n_pieces_max()), N_CELLS_MANY), N_CELLS_PIECE);
    n_pieces = std::max<int64_t>(1, div_up(n, n_piece));
}

//
// a piece
//

// store the new cells of the near part that lie in a span: as ggml_set_rows() does, rounded by the same functions
static void store_new(const attn_work & w, const attn_tile & tile, span cells) {
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

static void attend(attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells) {
    w.pr.few ? attend_few(w, tile, part, cell0, n_cells) : attend_many(w, tile, part, cell0, n_cells);
}

// the same for a tile of one token, without the cells that it does not see
static void attend_live(attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells) {
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

static void attend_piece(attn_work & w, const attn_tile & tile, const attn_cells & cells, int64_t i, bool live_only) {
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
static float result_scale(float m, float l, float sink) {
    if (sink > -INFINITY) {
        const float m_new = std::max(m, sink);

        const float scale = exp2f(m - m_new);

        return scale/(l*scale + exp2f(sink - m_new));
    }
    return l > 0.0f ? 1.0f/l : 0.0f;
}

static float * result_at(ggml_tensor * dst, const attn_problem & pr, int64_t token, int64_t head) {
    return (float *) dst->data + (token*pr.n_head + head)*pr.n_embd_v;
}

static float * partial_at(ggml_tensor * dst, const attn_problem & pr, int64_t piece, int64_t token, int64_t head) {
    return (float *) dst->data + pr.n_result() + ((piece*pr.n_tokens + token)*pr.n_head + head)*pr.n_partial();
}

// where a row of a piece goes
static float * stored_at(ggml_tensor * dst, const attn_problem & pr, const attn_cells & cells, int64_t piece, int64_t token, int64_t head) {
    return cells.n_pieces == 1 ? result_at(dst, pr, token, head) : partial_at(dst, pr, piece, token, head);
}

static void store_piece(ggml_tensor * dst, attn_work & w, const attn_tile & tile, const attn_cells & cells, int64_t piece) {
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

static bool has_nan(ggml_tensor * dst, const attn_problem & pr, const attn_tile & tile, const attn_cells & cells, int64_t piece, int64_t token) {
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

//
// all pieces of a tile
//

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

} // namespace llama_self_extend_cpu
