#include "graph/llama-graph-self-extend.h"

#include "cache/llama-kv-cache-self-extend.h"

#include "llama-batch.h"
#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <tuple>
#include <utility>

//
// devices
//

// the device that a part of the cache lies on, nullptr for the CPU
static ggml_backend_dev_t device_of(const ggml_tensor * view) {
    const auto buft = ggml_backend_buffer_get_type(view->view_src->buffer);

    return buft == ggml_backend_cpu_buffer_type() ? nullptr : ggml_backend_buft_get_device(buft);
}

static bool is_supported(ggml_backend_dev_t dev, const ggml_tensor * node) {
    return !dev || ggml_backend_dev_supports_op(dev, node);
}

// can rows of the cache be read where it lies? otherwise the scheduler would have to move all of it
static bool can_read_rows(ggml_context * ctx, ggml_tensor * view, ggml_tensor * idxs) {
    ggml_tensor * rows = view->nb[1] > view->nb[2] ?
        ggml_view_2d(ctx, view->view_src, 1, ggml_nelements(view->view_src), ggml_element_size(view->view_src), 0) : view->view_src;

    return is_supported(device_of(view), ggml_get_rows(ctx, ggml_reshape_2d(ctx, rows, rows->ne[0], ggml_nrows(rows)), idxs));
}

//
// frames
//

// of a single token
static ggml_tensor * frame(ggml_context * ctx, ggml_tensor * cur, int64_t i) {
    return ggml_view_3d(ctx, cur, cur->ne[0], cur->ne[1], 1, cur->nb[1], cur->nb[2], i*cur->nb[2]);
}

void llm_graph_input_self_extend::build_frames(
        const llm_graph_context & gctx, ggml_tensor *& q_cur, ggml_tensor *& k_cur, ggml_tensor * k_rot, int il) {
    auto * ctx0 = gctx.ctx0;

    const auto * far = mctx->get_far();

    const bool none = llama_self_extend_rope_none(q_cur) && llama_self_extend_rope_none(k_cur);

    ggml_tensor * q_all = none ? q_cur : llama_self_extend_rope_at(ctx0, q_cur, pos_q, freqs, n_frames);
    ggml_tensor * k_all = none ? k_cur : llama_self_extend_rope_at(ctx0, k_cur, pos_k, freqs, n_frames);

    if (!q_all || !k_all) {
        llama_self_extend_refuse("architecture '%s' is not supported yet: layer %d does not attend with the result of RoPE",
                llm_arch_name(gctx.arch), il);
    }

    if (can_read_rows(ctx0, far->get_k(ctx0, il), pos_k) && can_read_rows(ctx0, far->get_v(ctx0, il), pos_k)) {
        mctx->get_kv()->set_rope(il, k_cur);
    }

    stores = mctx->get_kv()->get_way(il) == LLAMA_SELF_EXTEND_WAY_CPU && mctx->get_kv()->get_ga_w() > 0 &&
        llama_self_extend_attn_can_store(q_cur, mctx->get_near()->get_k(ctx0, il));

    const auto hadamard = [&](ggml_tensor * cur) { return k_rot ? llama_mul_mat_hadamard(ctx0, cur, k_rot) : cur; };

    // the near one and the far one
    const auto frames = [&](ggml_tensor * cur, ggml_tensor * all) -> std::pair<ggml_tensor *, ggml_tensor *> {
        all = hadamard(all);

        if (none) {
            return { all, all };
        }
        if (n_frames > 1) {
            return { frame(ctx0, all, 0), frame(ctx0, all, 1) };
        }
        return { hadamard(cur), all };
    };

    std::tie(q_near, q_cur) = frames(q_cur, q_all);
    std::tie(k_near, k_cur) = frames(k_cur, k_all);

    gctx.cb(q_cur, "q_far", il);
    gctx.cb(k_cur, "k_far", il);

    ggml_build_forward_expand(gctx.gf, q_near);
    ggml_build_forward_expand(gctx.gf, stores ? k_near : mctx->get_near()->cpy_k(ctx0, k_near, k_idxs, il));
}

//
// attention
//

ggml_tensor * llm_graph_input_self_extend::build_attn(
        const llm_graph_context & gctx,
        ggml_tensor * q,
        ggml_tensor * v_cur,
        ggml_tensor * kq_b,
        ggml_tensor * sinks,
              float   kq_scale,
                int   il) {
    if (kq_b) {
        llama_self_extend_refuse("architecture '%s' is not supported: it adds a bias to its attention scores", llm_arch_name(gctx.arch));
    }

    if (!stores) {
        ggml_build_forward_expand(gctx.gf, mctx->get_near()->cpy_v(gctx.ctx0, v_cur, v_idxs, il));
    }

    ggml_tensor * cur = mctx->get_kv()->get_way(il) != LLAMA_SELF_EXTEND_WAY_COMPOSED ?
        build_attn_fused(gctx, q, v_cur, sinks, kq_scale, il) : nullptr;

    if (!cur) {
        cur = build_attn_composed(gctx, q, sinks, kq_scale, il);
    }

    ggml_build_forward_expand(gctx.gf, cur);

    return cur;
}

static ggml_backend_t backend_of(ggml_backend_sched_t sched, ggml_backend_dev_t dev) {
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        if (ggml_backend_get_device(ggml_backend_sched_get_backend(sched, i)) == dev) {
            return ggml_backend_sched_get_backend(sched, i);
        }
    }
    return nullptr;
}

ggml_tensor * llm_graph_input_self_extend::build_attn_fused(
        const llm_graph_context & gctx, ggml_tensor * q, ggml_tensor * v_cur, ggml_tensor * sinks, float kq_scale, int il) {
    auto * ctx0 = gctx.ctx0;

    const auto * far  = mctx->get_far ();
    const auto * near = mctx->get_near();

    ggml_tensor * k_far = far->get_k(ctx0, il);

    const auto  dev     = device_of(k_far);
    const auto  backend = dev ? backend_of(gctx.sched, dev) : gctx.backend_cpu;
    const float softcap = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f;

    ggml_tensor * const src[LLAMA_SELF_EXTEND_N_SRC] = {
        q,      k_far,                 far ->get_v(ctx0, il),
        q_near, near->get_k(ctx0, il), near->get_v(ctx0, il),
        mask,
        dev ? bounds : stores ? k_near : nullptr,
        stores ? v_cur : nullptr,
        sinks,
    };

    ggml_tensor * cur;

    if (dev) {
        cur = backend ? llama_self_extend_attn_build_device(ctx0, dev, src, kq_scale, softcap) : nullptr;
    } else {
        auto & params = *attn_params.emplace_back(std::make_unique<llama_self_extend_attn_params>());

        params.ranges = ranges.data();

        cur = llama_self_extend_attn_build(ctx0, src, kq_scale, softcap, &params);
    }

    if (!cur) {
        return nullptr;
    }

    gctx.cb(cur, "kqv_self_extend", il);

    // other backends may say that they support every op
    ggml_backend_sched_set_tensor_backend(gctx.sched, cur->view_src, backend);

    return ggml_reshape_2d(ctx0, cur, cur->ne[0]*cur->ne[1], cur->ne[2]);
}

// V as [n_kv, n_embd_head_v, n_head_kv, n_stream]
static ggml_tensor * v_transposed(ggml_context * ctx, ggml_tensor * v, const std::function<ggml_tensor * (ggml_tensor *)> & check) {
    const bool v_trans = v->nb[1] > v->nb[2];

    if (ggml_is_quantized(v->type)) {
        v = check(ggml_cast(ctx, v, GGML_TYPE_F32));
    }

    v = ggml_permute(ctx, v, 0, 2, 1, 3);

    return v_trans ? v : check(ggml_cont(ctx, ggml_transpose(ctx, v)));
}

ggml_tensor * llm_graph_input_self_extend::build_attn_composed(
        const llm_graph_context & gctx, ggml_tensor * q, ggml_tensor * sinks, float kq_scale, int il) {
    auto * ctx0 = gctx.ctx0;

    const auto * far  = mctx->get_far ();
    const auto * near = mctx->get_near();

    ggml_tensor * k_far = far->get_k(ctx0, il);

    const int64_t n_stream = k_far->ne[3];

    // all of it runs where the cache lies, or not at all: the scheduler would move the cache to the CPU without a word
    const auto check = [&](ggml_tensor * node) {
        if (!is_supported(device_of(k_far), node)) {
            llama_self_extend_refuse("device '%s' cannot compute the attention of layer %d: it does not support %s of %s with this cache; "
                    "use another type of cache or a smaller n_ubatch, or keep the cache in CPU memory (offload_kqv)",
                    ggml_backend_dev_name(device_of(k_far)), il, ggml_op_name(node->op), ggml_type_name(node->src[0]->type));
        }
        return node;
    };

    // [n_kv, n_tokens, n_head, n_stream]
    const auto scores = [&](ggml_tensor * k, ggml_tensor * q) {
        q = ggml_view_4d(ctx0, q, q->ne[0], q->ne[1], q->ne[2]/n_stream, n_stream, q->nb[1], q->nb[2], q->nb[2]*(q->ne[2]/n_stream), 0);

        k = ggml_permute(ctx0, k, 0, 2, 1, 3);
        q = ggml_permute(ctx0, q, 0, 2, 1, 3);

        // Vulkan multiplies with a quantized matrix only if its rows follow one another
        if (ggml_is_quantized(k->type) && !is_supported(device_of(k_far), ggml_mul_mat(ctx0, k, q))) {
            k = check(ggml_cast(ctx0, k, GGML_TYPE_F32));
        }

        ggml_tensor * kq = ggml_mul_mat(ctx0, k, q);
        ggml_prec_set_acc(kq, GGML_PREC_F32);

        return check(kq);
    };

    ggml_tensor * kq_far  = scores(k_far,                 q);
    ggml_tensor * kq_near = scores(near->get_k(ctx0, il), q_near);

    const int64_t n_far = kq_far->ne[0];

    ggml_tensor * kq = check(ggml_concat(ctx0, kq_far, kq_near, 0));

    if (hparams.attn_soft_cap) {
        kq = ggml_scale(ctx0, kq, 1.0f/hparams.f_attn_logit_softcapping);
        kq = ggml_tanh (ctx0, kq);
        kq = ggml_scale(ctx0, kq, hparams.f_attn_logit_softcapping);
    }

    kq = ggml_soft_max_ext(ctx0, kq, mask, kq_scale, 0.0f);
    ggml_soft_max_add_sinks(kq, sinks);
    gctx.cb(check(kq), "kq_self_extend", il);

    const auto weighted = [&](ggml_tensor * v, int64_t i0, int64_t n_kv) {
        ggml_tensor * p = ggml_view_4d(ctx0, kq, n_kv, kq->ne[1], kq->ne[2], kq->ne[3], kq->nb[1], kq->nb[2], kq->nb[3], i0*kq->nb[0]);

        v = v_transposed(ctx0, v, check);

        return check(ggml_mul_mat(ctx0, v, p));
    };

    ggml_tensor * kqv = ggml_add(ctx0,
            weighted(far ->get_v(ctx0, il), 0,     n_far),
            weighted(near->get_v(ctx0, il), n_far, kq->ne[0] - n_far));

    gctx.cb(check(kqv), "kqv_self_extend", il);

    ggml_tensor * cur = ggml_permute(ctx0, kqv, 0, 2, 1, 3);

    cur = ggml_cont_2d(ctx0, cur, cur->ne[0]*cur->ne[1], cur->ne[2]*cur->ne[3]);

    if (!cparams.offload_kqv) {
        // all nodes between the KV store and the attention output are run on the CPU
        ggml_backend_sched_set_tensor_backend(gctx.sched, cur, gctx.backend_cpu);
    }

    return cur;
}

//
// inputs
//

static int64_t n_stream_of(const llama_ubatch & ubatch, const llama_cparams & cparams) {
    return cparams.kv_unified ? 1 : ubatch.n_seqs_unq;
}

// With more backends the scheduler may have to copy what RoPE reads, and cannot copy a token that is there twice. One node has one
// table of frequencies.
static int64_t n_frames_of(const llm_graph_context & gctx, const llama_self_extend_mctx * mctx) {
    return gctx.ubatch.n_tokens == 1 && !mctx->get_kv()->get_map().has_freqs() && ggml_backend_sched_get_n_backends(gctx.sched) == 1 ? 2 : 1;
}

llm_graph_input_self_extend::llm_graph_input_self_extend(const llm_graph_context & gctx, const llama_self_extend_mctx * mctx) :
    hparams(gctx.hparams), cparams(gctx.cparams), mctx(mctx), n_frames(n_frames_of(gctx, mctx)),
    freqs(mctx->get_kv()->get_freqs()),
    n_raised(mctx->get_kv()->get_n_raised()), n_far(mctx->get_far()->get_n_kv()), n_near(mctx->get_near()->get_n_kv()) {
    auto * ctx0 = gctx.ctx0;

    const auto & ubatch   = gctx.ubatch;
    const auto   n_tokens = ubatch.n_tokens;
    const auto   n_stream = n_stream_of(ubatch, cparams);

    const auto input = [](ggml_tensor * t, const char * name) {
        ggml_set_input(t);
        ggml_set_name(t, name);
        return t;
    };

    const int64_t n_pos = hparams.n_pos_per_embd();

    pos_q = input(ggml_new_tensor_1d(ctx0, GGML_TYPE_I32, n_tokens*n_frames*n_pos), "self_extend_pos_q");
    pos_k = input(ggml_new_tensor_1d(ctx0, GGML_TYPE_I32, n_tokens*n_frames*n_pos), "self_extend_pos_k");

    // where all of the model's RoPE nodes are replaced its positions are not a part of the graph, but llama.cpp sets them
    for (const auto & inp : gctx.res->inputs) {
        if (const auto * inp_pos = dynamic_cast<const llm_graph_input_pos *>(inp.get())) {
            ggml_build_forward_expand(gctx.gf, inp_pos->pos);
        }
    }

    k_idxs = mctx->get_near()->build_input_k_idxs(ctx0, ubatch);
    v_idxs = mctx->get_near()->build_input_v_idxs(ctx0, ubatch);

    // the masks of both parts side by side: the composed way needs them in one row
    mask = input(ggml_new_tensor_4d(ctx0, GGML_TYPE_F16, n_far + n_near, n_tokens/n_stream, 1, n_stream), "self_extend_mask");

    bounds = input(llama_self_extend_attn_new_bounds(ctx0, n_tokens, n_stream), "self_extend_bounds");

    ranges.resize(n_tokens);
}

// the cells that a row of the mask lets through: all of [begin, end) if dense
struct mask_range {
    int32_t begin;
    int32_t end;
    bool    dense;
};

// a row of the mask for the cells with pos_lo < pos <= pos_hi
static mask_range set_mask_row(ggml_fp16_t * dst, const std::vector<llama_pos> & pos, llama_pos pos_lo, llama_pos pos_hi) {
    const ggml_fp16_t keep = ggml_fp32_to_fp16(0.0f);
    const ggml_fp16_t drop = ggml_fp32_to_fp16(-INFINITY);

    const int32_t n = pos.size();

    int32_t first  = n;
    int32_t last   = -1;
    int32_t n_live = 0;

    for (int32_t j = 0; j < n; ++j) {
        const bool live = pos[j] > pos_lo && pos[j] <= pos_hi;

        dst[j]  = live ? keep : drop;
        first   = live ? std::min(first, j) : first;
        last    = live ? j                  : last;
        n_live += live;
    }

    const int32_t begin = std::min(first, last + 1);

    return { begin, last + 1, n_live == last + 1 - begin };
}

// the positions of a sequence in the cells of a part, none for cells that the sequence does not use
static void get_cell_pos(std::vector<llama_pos> & dst, const llama_kv_cache & kv, llama_seq_id seq_id, uint32_t n_kv, llama_pos none) {
    const auto & cells = kv.get_cells(seq_id);

    dst.resize(n_kv);
    for (uint32_t j = 0; j < n_kv; ++j) {
        dst[j] = !cells.is_empty(j) && cells.seq_has(j, seq_id) ? cells.pos_get(j) : none;
    }
}

void llm_graph_input_self_extend::set_input(const llama_ubatch * ubatch) {
    const auto * kv = mctx->get_kv();

    // left unallocated when the kernel stores the new cells
    if (k_idxs->buffer) {
        mctx->get_near()->set_input_k_idxs(k_idxs, ubatch);
        mctx->get_near()->set_input_v_idxs(v_idxs, ubatch);
    }

    const auto & slot_near = mctx->get_slot_near();

    GGML_ASSERT(ggml_backend_buffer_is_host(mask->buffer));

    std::vector<int32_t> frames_q;
    std::vector<int32_t> frames_k;

    constexpr llama_pos pos_none_lo = std::numeric_limits<llama_pos>::min();
    constexpr llama_pos pos_none_hi = std::numeric_limits<llama_pos>::max();

    std::vector<llama_pos> cells_far;
    std::vector<llama_pos> cells_near;
    llama_seq_id           cells_seq = -1;

    for (uint32_t i = 0; i < ubatch->n_tokens; ++i) {
        const llama_pos    pos    = ubatch->pos[i];
        const llama_seq_id seq_id = ubatch->seq_id[i][0];
        const auto         map    = kv->get_map(seq_id);

        if (n_frames > 1) {
            frames_q.push_back(pos);
            frames_k.push_back(pos);
        }
        frames_q.push_back(map.pos_q(pos, freqs.get_den()));
        frames_k.push_back(map.pos_k(pos, freqs.get_den()));

        if (seq_id != cells_seq) {
            get_cell_pos(cells_far,  *kv->get_far (), seq_id, n_far,  pos_none_hi);
            get_cell_pos(cells_near, *kv->get_near(), seq_id, n_near, pos_none_lo);
            cells_seq = seq_id;
        }

        // llama_self_extend_map::is_far() for all cells at once
        const llama_pos pos_split = pos - llama_pos(map.ga_w);

        ggml_fp16_t * row = (ggml_fp16_t *) mask->data + size_t(i)*(n_far + n_near);

        const mask_range far  = set_mask_row(row,         cells_far,  -1,        pos_split);
        const mask_range near = set_mask_row(row + n_far, cells_near, pos_split, cparams.causal_attn ? pos : pos_none_hi);

        const int32_t near_new = slot_near.idxs[i/slot_near.size()][i%slot_near.size()];

        ranges[i] = { far.begin, far.end, near.begin, near.end, far.dense, near.dense, near_new, 0 };
    }

    if (bounds->buffer) {
        const auto data = llama_self_extend_attn_bounds(ranges, mask->ne[3]);

        ggml_backend_tensor_set(bounds, data.data(), 0, ggml_nbytes(bounds));
    }

    freqs.set_input();

    llama_self_extend_rope_set_pos(pos_q, frames_q.data(), frames_q.size());
    llama_self_extend_rope_set_pos(pos_k, frames_k.data(), frames_k.size());
}

bool llm_graph_input_self_extend::can_reuse(const llm_graph_params & params) {
    mctx = dynamic_cast<const llama_self_extend_mctx *>(params.mctx);

    const auto n_tokens = params.ubatch.n_tokens;
    const auto n_stream = n_stream_of(params.ubatch, params.cparams);

    bool res = true;

    res &= n_raised == mctx->get_kv()->get_n_raised();
    res &= freqs.get_den() == mctx->get_kv()->get_freqs().get_den();
    res &= k_idxs->ne[0] == n_tokens;
    res &= n_far  == mctx->get_far ()->get_n_kv();
    res &= n_near == mctx->get_near()->get_n_kv();
    res &= mask ->ne[1] == n_tokens/n_stream;
    res &= mask ->ne[3] == n_stream;

    return res;
}

llm_graph_input_self_extend * llama_self_extend_attn_inp(const llm_graph_context & gctx, int il) {
    const auto * mctx = dynamic_cast<const llama_self_extend_mctx *>(gctx.mctx);

    if (!mctx || !mctx->get_kv()->is_extended(il)) {
        return nullptr;
    }

    for (const auto & inp : gctx.res->inputs) {
        if (auto * res = dynamic_cast<llm_graph_input_self_extend *>(inp.get())) {
            return res;
        }
    }

    return static_cast<llm_graph_input_self_extend *>(gctx.res->add_input(std::make_unique<llm_graph_input_self_extend>(gctx, mctx)));
}
