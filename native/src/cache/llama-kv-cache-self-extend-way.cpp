#include "cache/llama-kv-cache-self-extend-way.h"

#include "attention/check/llama-self-extend-attn-check.h"
#include "attention/llama-self-extend-attn.h"

#include "llama-cparams.h"
#include "llama-hparams.h"
#include "llama-kv-cache.h"

#include "ggml-cpp.h"

#include <algorithm>

ggml_backend_dev_t llama_self_extend_dev_of(const llama_kv_cache & kv, int32_t il) {
    const auto buft = ggml_backend_buffer_get_type(kv.get_k_storage(il)->buffer);

    return buft == ggml_backend_cpu_buffer_type() ? nullptr : ggml_backend_buft_get_device(buft);
}

// can the device compute the node for so many tokens of each stream?
static bool can_compute(
        ggml_backend_dev_t       dev,
        const llama_kv_cache   & kv_far,
        const llama_kv_cache   & kv_near,
        const llama_hparams    & hparams,
        int32_t                  il,
        int64_t                  n_tps) {
    ggml_context_ptr ctx { ggml_init({ 32*ggml_tensor_overhead(), nullptr, true }) };

    auto * ctx0 = ctx.get();

    // all cells of all streams
    const llama_kv_cache_context far (const_cast<llama_kv_cache *>(&kv_far));
    const llama_kv_cache_context near(const_cast<llama_kv_cache *>(&kv_near));

    ggml_tensor * k_far  = far .get_k(ctx0, il);
    ggml_tensor * k_near = near.get_k(ctx0, il);

    const int64_t n_stream = k_far->ne[3];
    const int64_t n_tokens = n_stream*n_tps;
    const int64_t n_head   = hparams.n_head(il);

    const auto q = [&]() { return ggml_new_tensor_3d(ctx0, GGML_TYPE_F32, k_far->ne[0], n_head, n_tokens); };

    ggml_tensor * const src[LLAMA_SELF_EXTEND_N_SRC] = {
        q(), k_far,  far .get_v(ctx0, il),
        q(), k_near, near.get_v(ctx0, il),
        ggml_new_tensor_4d(ctx0, GGML_TYPE_F16, k_far->ne[2] + k_near->ne[2], n_tps, 1, n_stream),
        llama_self_extend_attn_new_bounds(ctx0, n_tokens, n_stream),
        nullptr,
        ggml_new_tensor_1d(ctx0, GGML_TYPE_F32, n_head),
    };

    return llama_self_extend_attn_build_device(ctx0, dev, src, 1.0f, hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f);
}

llama_self_extend_way llama_self_extend_find_way(
        const llama_kv_cache   & kv_far,
        const llama_kv_cache   & kv_near,
        const llama_hparams    & hparams,
        const llama_cparams    & cparams,
        llama_self_extend_attn   attn,
        int32_t                  il) {
    if (attn == LLAMA_SELF_EXTEND_ATTN_COMPOSED) {
        return LLAMA_SELF_EXTEND_WAY_COMPOSED;
    }

    const auto dev = llama_self_extend_dev_of(kv_far, il);

    if (!dev) {
        return LLAMA_SELF_EXTEND_WAY_CPU;
    }

    // few tokens have kernels of their own; the tokens of a ubatch are shared by the streams
    for (int64_t n_tps : { 1u, 2u, std::max(1u, cparams.n_ubatch/kv_far.get_n_stream()) }) {
        if (!can_compute(dev, kv_far, kv_near, hparams, il, n_tps)) {
            return LLAMA_SELF_EXTEND_WAY_COMPOSED;
        }
    }

    const llama_self_extend_attn_shape shape = {
        /*.n_embd_k      =*/ hparams.n_embd_head_k(il),
        /*.n_embd_v      =*/ hparams.n_embd_head_v(il),
        /*.n_head        =*/ hparams.n_head(il),
        /*.n_head_kv     =*/ hparams.n_head_kv(il),
        /*.type_k        =*/ kv_far.type_k(),
        /*.type_v        =*/ kv_far.type_v(),
        /*.logit_softcap =*/ hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f,
    };

    return llama_self_extend_attn_check(dev, shape) ? LLAMA_SELF_EXTEND_WAY_DEVICE : LLAMA_SELF_EXTEND_WAY_COMPOSED;
}
