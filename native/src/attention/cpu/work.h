#pragma once

#include "attention/cpu/ops.h"
#include "attention/cpu/problem.h"

//
// what a thread works with
//

namespace llama_self_extend_cpu {

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
            const llama_self_extend_ops & ops, int64_t n_rows, int64_t n_cells);

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

} // namespace llama_self_extend_cpu
