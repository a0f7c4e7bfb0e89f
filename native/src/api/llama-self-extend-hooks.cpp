#include "api/llama-self-extend-hooks.h"

#include "cache/llama-kv-cache-self-extend.h"
#include "graph/llama-graph-self-extend-update.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-model.h"

#include <memory>
#include <typeinfo>

// the memory has to be a KV cache, with or without a part for sliding windows, and the model one that rotates its keys
static void check_memory(const llama_memory_i * mem, const llama_model & model) {
    const auto   & hparams = model.hparams;
    const char   * arch    = llm_arch_name(model.arch);

    if (llm_arch_is_recurrent(model.arch)) {
        llama_self_extend_refuse("architecture '%s' is not supported: it is recurrent and has no KV cache to extend", arch);
    }
    if (llm_arch_is_hybrid(model.arch)) {
        llama_self_extend_refuse("architecture '%s' is not supported yet: it mixes attention with recurrent layers", arch);
    }
    if (hparams.is_mla()) {
        llama_self_extend_refuse("architecture '%s' is not supported yet: it uses multi-head latent attention (MLA)", arch);
    }
    if (hparams.use_alibi) {
        llama_self_extend_refuse("architecture '%s' is not supported: it encodes positions with ALiBi, not with RoPE", arch);
    }
    if (hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
        llama_self_extend_refuse("architecture '%s' is not supported: it does not use RoPE", arch);
    }
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (!hparams.has_kv(il)) {
            llama_self_extend_refuse("architecture '%s' is not supported yet: layer %u attends with the keys of another layer", arch, il);
        }
    }
    if (model.arch == LLM_ARCH_GROK) {
        llama_self_extend_refuse("architecture '%s' is not supported yet: it scales its attention scores in its own way", arch);
    }
    if (model.arch == LLM_ARCH_DFLASH || model.arch == LLM_ARCH_EAGLE3) {
        llama_self_extend_refuse("architecture '%s' is not supported: draft models fill the KV cache in their own way", arch);
    }
    if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        llama_self_extend_refuse("split mode 'tensor' is not supported yet");
    }
    if (mem == nullptr || (typeid(*mem) != typeid(llama_kv_cache) && typeid(*mem) != typeid(llama_kv_cache_iswa))) {
        llama_self_extend_refuse("architecture '%s' is not supported yet: it does not use one of the plain KV caches", arch);
    }
}

llama_memory_i * llama_self_extend_init_memory(llama_memory_i * mem, const llama_model & model, const llama_cparams & cparams) {
    const auto * config = llama_self_extend_get_active();

    if (!config) {
        return mem;
    }

    llama_memory_ptr owned(mem);

    check_memory(mem, model);

    return new llama_kv_cache_self_extend(model, cparams, *config,
            llama_kv_cache_self_extend::turn_graphs { llama_self_extend_restore_near, llama_self_extend_turn_far }, std::move(owned));
}

void llama_self_extend_update(llama_context & lctx) {
    if (dynamic_cast<llama_kv_cache_self_extend *>(lctx.get_memory())) {
        lctx.memory_update(false);
    }
}

uint32_t llama_self_extend_n_nodes(const llama_memory_i * mem) {
    const auto * kv = dynamic_cast<const llama_kv_cache_self_extend *>(mem);

    // measured: up to 37 more for each layer, composed with a quantized cache
    return kv ? 48*kv->get_far()->get_layer_ids().size() + 16 : 0;
}
