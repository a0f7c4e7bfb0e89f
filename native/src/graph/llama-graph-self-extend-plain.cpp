#include "graph/llama-graph-self-extend-plain.h"

#include "cache/llama-kv-cache-self-extend.h"
#include "rope/llama-self-extend-rope.h"

#include "ggml-cpp.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <typeinfo>

// what a graph stores in the K of a cache, nullptr if it is not found
static const ggml_tensor * find_stored(ggml_cgraph * gf, const ggml_tensor * k) {
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);

        if (node->op == GGML_OP_SET_ROWS && node->view_src == k) {
            return node->src[0];
        }
    }

    return nullptr;
}

// the key as the model made it: before it was multiplied by the Hadamard matrix of a quantized cache, and laid out for the store
static const ggml_tensor * find_key(const ggml_tensor * cur) {
    while (true) {
        const bool is_layout = (cur->op == GGML_OP_VIEW || cur->op == GGML_OP_RESHAPE || cur->op == GGML_OP_CONT) &&
            ggml_nelements(cur) == ggml_nelements(cur->src[0]);

        const bool is_hadamard = cur->op == GGML_OP_MUL_MAT && (cur->src[0]->flags & GGML_TENSOR_FLAG_INPUT);

        if (!is_layout && !is_hadamard) {
            return cur;
        }
        cur = cur->src[is_hadamard ? 1 : 0];
    }
}

// the part of a key that is turned, and where it begins: that of multi-head latent attention stands behind another
static const ggml_tensor * find_turned(const ggml_tensor * key, int64_t & i0) {
    i0 = 0;

    if (key->op == GGML_OP_CONCAT && key->op_params[0] == 0) {
        i0  = key->src[0]->ne[0];
        key = key->src[1];

        if (key->op == GGML_OP_REPEAT && key->ne[0] == key->src[0]->ne[0]) {
            key = key->src[0];
        }
    }

    return key;
}

// the RoPE that llama.cpp's shift applies to the keys of a layer. ref: llama_kv_cache::build_rope_shift()
static llama_self_extend_rope shift_rope(ggml_context * ctx, const llama_context & lctx, uint32_t il) {
    const auto & model   = lctx.get_model();
    const auto & hparams = model.hparams;
    const auto & cparams = lctx.get_cparams();

    ggml_tensor * node = ggml_rope_ext(ctx,
            ggml_new_tensor_3d(ctx, GGML_TYPE_F32, hparams.n_rot(il), 1, 1), ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 1),
            model.get_rope_factors(cparams, il), hparams.n_rot(il), hparams.rope_type, cparams.n_ctx_orig_yarn,
            model.get_rope_freq_base(cparams, il), model.get_rope_freq_scale(cparams, il),
            cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast, cparams.yarn_beta_slow);

    llama_self_extend_rope res;
    llama_self_extend_rope_find(node, res);

    return res;
}

static bool is_same(const llama_self_extend_rope & a, const llama_self_extend_rope & b) {
    return a.factors == b.factors && a.magnitude == b.magnitude &&
        std::equal(std::begin(a.op_params), std::end(a.op_params), std::begin(b.op_params));
}

static const char * layer_fault(const llama_context & lctx, const llama_kv_cache & kv, uint32_t il) {
    const auto & hparams = lctx.get_model().hparams;

    const ggml_tensor * stored = find_stored(lctx.get_gf_res_reserve()->get_gf(), kv.get_k_storage(il));

    int64_t i0 = 0;
    const ggml_tensor * key = stored ? find_turned(find_key(stored), i0) : nullptr;

    llama_self_extend_rope rope;
    if (!llama_self_extend_rope_find(key, rope)) {
        return "its keys cannot be moved to other positions without loss, as they are not what RoPE made";
    }

    if (hparams.rope_type == LLAMA_ROPE_TYPE_NONE || !hparams.has_rope(il)) {
        return rope.none ? "" : "llama.cpp does not turn the keys of some layers, but the model does";
    }

    const ggml_context_ptr ctx { ggml_init({ 8*ggml_tensor_overhead(), nullptr, true }) };

    const int64_t n_head = hparams.n_embd_head_k(il);
    const int64_t n_rot  = hparams.n_rot(il);

    if (rope.none || !is_same(rope, shift_rope(ctx.get(), lctx, il)) || i0 != (hparams.n_lora_kv > 0 ? n_head - n_rot : 0)) {
        return "llama.cpp would turn its keys in another way than the model does";
    }
    if (std::fabs(rope.magnitude - 1.0f) > 1e-5f) {
        return "llama.cpp would scale its keys once more by the magnitude of their RoPE (YaRN, LongRoPE)";
    }

    const ggml_type type = kv.get_k_storage(il)->type;

    if (type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && (n_rot != n_head || !kv.build_input_k_rot(ctx.get()))) {
        return "llama.cpp cannot turn keys of this type of cache (type_k) in heads of this size; in F16 and F32 it can";
    }

    return "";
}

const char * llama_self_extend_find_shift_fault(const llama_context & lctx) {
    const auto * mem = lctx.get_memory();

    if (dynamic_cast<const llama_kv_cache_self_extend *>(mem)) {
        return "";
    }
    if (!mem) {
        return "it keeps none";
    }
    if (typeid(*mem) == typeid(llama_kv_cache_iswa)) {
        return "after a shift llama.cpp loses keys of layers with a sliding window";
    }
    if (typeid(*mem) != typeid(llama_kv_cache)) {
        return "it has layers that cannot forget some of their tokens";
    }
    if (lctx.get_model().pos_embd) {
        return "its positions are learned, and in its keys from the first layer on";
    }

    if (!mem->get_can_shift()) {
        return "llama.cpp does not turn keys with positions in several dimensions, or whose layers turn more or less of them";
    }

    const auto & kv = static_cast<const llama_kv_cache &>(*mem);

    for (uint32_t il : kv.get_layer_ids()) {
        const char * fault = layer_fault(lctx, kv, il);

        if (*fault) {
            return fault;
        }
    }

    return "";
}
