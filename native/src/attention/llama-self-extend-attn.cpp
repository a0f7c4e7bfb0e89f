#include "attention/llama-self-extend-attn.h"

#include <algorithm>

ggml_tensor * llama_self_extend_attn_new_bounds(ggml_context * ctx, int64_t n_tokens, int64_t n_stream) {
    return ggml_new_tensor_1d(ctx, GGML_TYPE_I32, LLAMA_SELF_EXTEND_N_RANGE*n_tokens + 2*n_stream);
}

std::vector<int32_t> llama_self_extend_attn_bounds(const std::vector<llama_self_extend_range> & ranges, int64_t n_stream) {
    const size_t n_ranges = ranges.size()*LLAMA_SELF_EXTEND_N_RANGE;
    const size_t n_tps    = ranges.size()/n_stream;

    std::vector<int32_t> res(n_ranges + 2*n_stream, 0);

    memcpy(res.data(), ranges.data(), n_ranges*sizeof(int32_t));

    for (size_t i = 0; i < ranges.size(); ++i) {
        int32_t & far  = res[n_ranges + i/n_tps];
        int32_t & near = res[n_ranges + i/n_tps + n_stream];

        far  = std::max(far,  GGML_PAD(ranges[i].far_end,  LLAMA_SELF_EXTEND_PAD_END));
        near = std::max(near, GGML_PAD(ranges[i].near_end, LLAMA_SELF_EXTEND_PAD_END));
    }

    return res;
}

ggml_tensor * llama_self_extend_attn_new_node(
        ggml_context       * ctx,
        ggml_tensor * const  src[LLAMA_SELF_EXTEND_N_SRC],
        float                scale,
        float                logit_softcap,
        int64_t              n_embd_v,
        int64_t              n_work,
        ggml_custom_op_t     fun,
        void               * userdata) {
    const ggml_tensor * q = src[LLAMA_SELF_EXTEND_SRC_Q_FAR];

    ggml_tensor * node = ggml_custom_4d(ctx, GGML_TYPE_F32, n_embd_v*q->ne[1]*q->ne[2] + n_work, 1, 1, 1,
            nullptr, 0, fun, GGML_N_TASKS_MAX, userdata);

    // ggml_custom_4d() takes one source less than a node can have
    std::copy(src, src + LLAMA_SELF_EXTEND_N_SRC, node->src);

    llama_self_extend_attn_set_op(node, scale, logit_softcap);

    return node;
}

llama_self_extend_attn_n_work_t llama_self_extend_attn_get_n_work(ggml_backend_dev_t dev) {
    return (llama_self_extend_attn_n_work_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), LLAMA_SELF_EXTEND_ATTN_PROC);
}

// a device's own code runs in its place
static void not_on_cpu(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(ith);
    GGML_UNUSED(nth);
    GGML_UNUSED(userdata);
    GGML_ABORT("the attention '%s' was built for another device", dst->name);
}

ggml_tensor * llama_self_extend_attn_build_device(
        ggml_context       * ctx,
        ggml_backend_dev_t   dev,
        ggml_tensor * const  src[LLAMA_SELF_EXTEND_N_SRC],
        float                scale,
        float                logit_softcap) {
    const auto n_work = llama_self_extend_attn_get_n_work(dev);

    const ggml_tensor * q = src[LLAMA_SELF_EXTEND_SRC_Q_FAR];
    const ggml_tensor * v = src[LLAMA_SELF_EXTEND_SRC_V_FAR];

    if (!n_work || v->nb[1] > v->nb[2]) { // V is transposed without flash attention
        return nullptr;
    }

    const int64_t n_embd_v = v->ne[0];

    ggml_tensor * node = llama_self_extend_attn_new_node(ctx, src, scale, logit_softcap, n_embd_v, 0, not_on_cpu, nullptr);

    const int64_t n_bytes = n_work(dev, node);
    if (n_bytes < 0) {
        return nullptr;
    }

    node->ne[0] += (n_bytes + sizeof(float) - 1)/sizeof(float);
    for (int i = 1; i < GGML_MAX_DIMS; ++i) {
        node->nb[i] = node->ne[0]*node->nb[0];
    }

    return ggml_view_3d(ctx, node, n_embd_v, q->ne[1], q->ne[2], n_embd_v*sizeof(float), n_embd_v*q->ne[1]*sizeof(float), 0);
}
