#include "attention/cpu/rows.h"

namespace llama_self_extend_cpu {

constexpr int64_t N_CELLS_READ = 32; // of one head after the other

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

} // namespace llama_self_extend_cpu
