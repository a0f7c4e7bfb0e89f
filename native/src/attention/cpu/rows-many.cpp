#include "attention/cpu/rows.h"

namespace llama_self_extend_cpu {

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

} // namespace llama_self_extend_cpu
