#include "graph/llama-graph-self-extend-update.h"

#include "cache/llama-kv-cache-self-extend.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <memory>

//
// inputs
//

class llm_graph_input_turn : public llm_graph_input_i {
public:
    llm_graph_input_turn(
            ggml_context * ctx, const llama_kv_cache & kv, uint32_t n_pos, std::vector<int32_t> deltas, llama_self_extend_freqs freqs,
            std::vector<int32_t> rows_src) :
        freqs(std::move(freqs)), kv(kv), deltas(std::move(deltas)), rows_src(std::move(rows_src)) {
        delta = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, int64_t(this->deltas.size())*n_pos);
        src   = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, this->rows_src.size());
        k_rot = kv.build_input_k_rot(ctx);

        ggml_set_input(delta);
        ggml_set_input(src);
    }

    void set_input(const llama_ubatch * ubatch) override {
        GGML_UNUSED(ubatch);

        if (delta->buffer) { // not there if nothing is turned
            llama_self_extend_rope_set_pos(delta, deltas.data(), deltas.size());
            freqs.set_input();
        }

        ggml_backend_tensor_set(src, rows_src.data(), 0, ggml_nbytes(src));

        if (k_rot && k_rot->buffer) {
            kv.set_input_k_rot(k_rot);
        }
    }

    ggml_tensor * delta; // I32 [n] or [n*4] with M-RoPE
    ggml_tensor * src;   // I32 [n], rows of the cache
    ggml_tensor * k_rot; // of a quantized cache, or nullptr

    llama_self_extend_freqs freqs; // that deltas are positions of

protected:
    const llama_kv_cache & kv;

    const std::vector<int32_t> deltas;
    const std::vector<int32_t> rows_src;
};

// keys of rows of a cache [n_embd_k_gqa, n_rows], turned further: F32 [n_embd_head, n_head_kv, n]
static ggml_tensor * build_turned(
        ggml_context * ctx, ggml_tensor * k_rows, llm_graph_input_turn & inp,
        const llama_hparams & hparams, const llama_self_extend_rope & rope, int32_t il) {
    ggml_tensor * k = ggml_get_rows(ctx, k_rows, inp.src);

    k = ggml_reshape_3d(ctx, k, hparams.n_embd_head_k(il), hparams.n_head_kv(il), inp.src->ne[0]);

    if (inp.k_rot) {
        k = llama_mul_mat_hadamard(ctx, k, inp.k_rot); // its own inverse
    }

    k = llama_self_extend_rope_turn(ctx, k, inp.delta, inp.freqs, rope);

    if (inp.k_rot) {
        k = llama_mul_mat_hadamard(ctx, k, inp.k_rot);
    }

    return k;
}

//
// graphs beside llama.cpp's own
//

static llm_graph_result * begin_graph(llama_context & lctx) {
    // the inputs may lie where a graph that is still running has its own. the context's own synchronize() ends a measurement
    ggml_backend_sched_synchronize(lctx.get_sched());

    ggml_backend_sched_reset(lctx.get_sched());

    auto * res = lctx.get_gf_res_reserve();
    res->reset();

    return res;
}

static bool compute_graph(llama_context & lctx, llm_graph_result & res) {
    if (!ggml_backend_sched_alloc_graph(lctx.get_sched(), res.get_gf())) {
        return false;
    }

    res.set_inputs(nullptr);

    return lctx.graph_compute(res.get_gf(), false) == GGML_STATUS_SUCCESS;
}

//
// shift
//

class llm_graph_input_shift : public llm_graph_input_turn {
public:
    using llm_graph_input_turn::llm_graph_input_turn;

    void set_input(const llama_ubatch * ubatch) override {
        llm_graph_input_turn::set_input(ubatch);

        const std::vector<int64_t> rows(rows_src.begin(), rows_src.end());
        ggml_backend_tensor_set(dst, rows.data(), 0, ggml_nbytes(dst));
    }

    ggml_tensor * dst; // I64 [n], the same rows
};

// Rows that are turned at once: in F32 they take more than they do in the cache, and all of them more than any batch. No more nodes
// than there is room for: up to 11 for each layer and piece.
static size_t n_rows_at_once(size_t n_rows, const llama_context & lctx) {
    constexpr size_t n_pieces = 8;

    return std::max<size_t>(lctx.get_cparams().n_ubatch, (n_rows + n_pieces - 1)/n_pieces);
}

static void build_shift(
        llm_graph_result & res, const llama_kv_cache_self_extend & kv_se, const llama_kv_cache & kv, const llama_hparams & hparams,
        std::vector<int32_t> deltas, const llama_self_extend_freqs & freqs, std::vector<int32_t> rows) {
    auto * ctx = res.get_ctx();

    const size_t n = rows.size();

    auto inp = std::make_unique<llm_graph_input_shift>(ctx, kv, hparams.n_pos_per_embd(), std::move(deltas), freqs, std::move(rows));

    inp->dst = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n);
    ggml_set_input(inp->dst);

    for (uint32_t il : kv.get_layer_ids()) {
        if (kv_se.get_rope(il)->none) {
            continue;
        }

        ggml_tensor * k = kv.get_k_storage(il);

        k = ggml_reshape_2d(ctx, k, k->ne[0], k->ne[1]*k->ne[2]);

        ggml_tensor * cur = build_turned(ctx, k, *inp, hparams, *kv_se.get_rope(il), il);

        ggml_build_forward_expand(res.get_gf(), ggml_set_rows(ctx, k, ggml_reshape_2d(ctx, cur, k->ne[0], n), inp->dst));
    }

    res.add_input(std::move(inp));
}

ggml_cgraph * llama_self_extend_build_graph_shift(const llama_kv_cache & kv, llm_graph_result * res, llama_context * lctx) {
    const auto * kv_se = dynamic_cast<const llama_kv_cache_self_extend *>(lctx->get_memory());

    if (!kv_se || (&kv != kv_se->get_far() && &kv != kv_se->get_near())) {
        return nullptr;
    }

    const bool is_far = &kv == kv_se->get_far();
    const auto freqs  = is_far ? kv_se->get_freqs() : llama_self_extend_freqs();

    std::vector<int32_t> deltas;
    std::vector<int32_t> rows;

    for (uint32_t s = 0; s < kv.get_n_stream(); ++s) {
        const auto & cells = kv.get_cells(s);

        for (uint32_t i = 0; i < cells.size(); ++i) {
            const llama_pos shift = cells.is_empty(i) ? 0 : cells.get_shift(i);
            const llama_pos pos   = cells.is_empty(i) ? 0 : cells.pos_get(i);

            if (shift == 0 || (is_far && kv_se->is_lost(s, i))) {
                continue;
            }

            int64_t delta = shift;

            if (is_far) { // a far key goes to the group of its new position
                const auto map = kv_se->get_map_cell(s, i);
                delta = map.pos_k(pos, freqs.get_den()) - map.pos_k(pos - shift, freqs.get_den());
            }

            if (delta != 0) {
                deltas.push_back(delta);
                rows  .push_back(s*cells.size() + i);
            }
        }
    }

    auto * ctx = res->get_ctx();
    auto * gf  = res->get_gf();

    if (rows.empty()) {
        // positions moved, groups did not. llama.cpp computes a graph all the same: one that does nothing
        ggml_tensor * nothing = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
        ggml_set_input(nothing);
        ggml_build_forward_expand(gf, ggml_dup(ctx, nothing));
        return gf;
    }

    const size_t n = n_rows_at_once(rows.size(), *lctx);

    for (size_t i0 = 0; i0 < rows.size(); i0 += n) {
        const size_t i1 = std::min(rows.size(), i0 + n);

        build_shift(*res, *kv_se, kv, llama_get_model(lctx)->hparams,
                { deltas.begin() + i0, deltas.begin() + i1 }, freqs, { rows.begin() + i0, rows.begin() + i1 });
    }

    return gf;
}

//
// turn
//

bool llama_self_extend_turn_far(
        const llama_kv_cache_self_extend & kv,
                           llama_context * lctx,
              const std::vector<int32_t> & rows,
              const std::vector<int32_t> & deltas) {
    auto * res = begin_graph(*lctx);

    build_shift(*res, kv, *kv.get_far(), llama_get_model(lctx)->hparams, deltas, kv.get_freqs(), rows);

    return compute_graph(*lctx, *res);
}

//
// restore
//

class llm_graph_input_restore : public llm_graph_input_turn {
public:
    llm_graph_input_restore(
            ggml_context * ctx, const llama_kv_cache & kv_far, const llama_kv_cache_context & near, const llama_ubatch & ubatch,
            std::vector<int32_t> deltas, const llama_self_extend_freqs & freqs, std::vector<int32_t> cells, bool v_trans, int64_t n_embd_v,
            int64_t n_cells) :
        llm_graph_input_turn(ctx, kv_far, ubatch.n_pos, std::move(deltas), freqs, std::move(cells)),
        near(near), ubatch(ubatch), n_cells(n_cells) {
        k_idxs = near.build_input_k_idxs(ctx, ubatch);
        v_idxs = near.build_input_v_idxs(ctx, ubatch);

        // a transposed value is read element by element
        v_src = src;
        if (v_trans) {
            v_src = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_embd_v*rows_src.size());
            ggml_set_input(v_src);
        }
    }

    void set_input(const llama_ubatch *) override {
        llm_graph_input_turn::set_input(nullptr);

        near.set_input_k_idxs(k_idxs, &ubatch);
        near.set_input_v_idxs(v_idxs, &ubatch);

        if (v_src != src) {
            const int64_t n_embd_v = v_src->ne[0]/int64_t(rows_src.size());

            std::vector<int32_t> elements;
            elements.reserve(v_src->ne[0]);

            for (int32_t cell : rows_src) {
                for (int64_t j = 0; j < n_embd_v; ++j) {
                    elements.push_back(j*n_cells + cell);
                }
            }

            ggml_backend_tensor_set(v_src, elements.data(), 0, ggml_nbytes(v_src));
        }
    }

    ggml_tensor * k_idxs;
    ggml_tensor * v_idxs;
    ggml_tensor * v_src;  // I32 [n], or [n*n_embd_v] if V is transposed

private:
    const llama_kv_cache_context & near;
    const llama_ubatch           & ubatch;

    const int64_t n_cells;
};

bool llama_self_extend_restore_near(
        const llama_kv_cache_self_extend & kv,
                           llama_context * lctx,
                      const llama_ubatch & ubatch,
         const llama_kv_cache::slot_info & sinfo,
             const std::vector<uint32_t> & cells_far) {
    const auto & hparams = llama_get_model(lctx)->hparams;

    const llama_kv_cache & far  = *kv.get_far();
    const uint32_t         strm = far.get_stream(ubatch.seq_id_unq[0]);
    const int64_t          n    = ubatch.n_tokens;

    const llama_kv_cache_context near(kv.get_near(), { sinfo }, { ubatch });
    const llama_kv_cache_context full(kv.get_far());

    const auto    freqs = kv.get_freqs();
    const int64_t den   = freqs.get_den();

    std::vector<int32_t> deltas;
    for (int64_t i = 0; i < n; ++i) {
        deltas.push_back(ubatch.pos[i]*den - kv.get_map_cell(strm, cells_far[i]).pos_k(ubatch.pos[i], den));
    }

    auto * res = begin_graph(*lctx);
    auto * ctx = res->get_ctx();
    auto * gf  = res->get_gf();

    std::unique_ptr<llm_graph_input_restore> inp;

    for (uint32_t il : far.get_layer_ids()) {
        ggml_tensor * k = far.get_k_storage(il);
        ggml_tensor * v = full.get_v(ctx, il);

        const bool v_trans = v->nb[1] > v->nb[2];

        v = v->view_src; // all of it

        if (!inp) {
            inp = std::make_unique<llm_graph_input_restore>(
                    ctx, far, near, ubatch, std::move(deltas), freqs, std::vector<int32_t>(cells_far.begin(), cells_far.end()),
                    v_trans, v->ne[0], far.get_size());
        }

        k = ggml_view_2d(ctx, k, k->ne[0], k->ne[1], k->nb[1], k->nb[2]*strm);
        v = v_trans ?
            ggml_view_2d(ctx, v, 1, v->ne[0]*v->ne[1], v->nb[0], v->nb[2]*strm) :
            ggml_view_2d(ctx, v, v->ne[0],   v->ne[1], v->nb[1], v->nb[2]*strm);

        ggml_tensor * k_cur = build_turned(ctx, k, *inp, hparams, *kv.get_rope(il), il);
        ggml_tensor * v_cur = ggml_get_rows(ctx, v, inp->v_src);

        v_cur = ggml_reshape_3d(ctx, v_cur, ggml_nelements(v_cur)/n, 1, n);

        ggml_build_forward_expand(gf, near.cpy_k(ctx, k_cur, inp->k_idxs, il));
        ggml_build_forward_expand(gf, near.cpy_v(ctx, v_cur, inp->v_idxs, il));
    }

    res->add_input(std::move(inp));

    return compute_graph(*lctx, *res);
}
