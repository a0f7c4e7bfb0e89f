#include "api/llama-self-extend-impl.h"

#include "cache/llama-kv-cache-self-extend.h"
#include "llama-self-extend-build.h"
#include "attention/cpu/llama-self-extend-attn-cpu.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <typeinfo>

//
// per-thread state
//

static thread_local std::optional<llama_self_extend_params> self_extend_next;   // set, not yet consumed
static thread_local std::optional<llama_self_extend_config> self_extend_active; // of the context that is being created
static thread_local std::string                             self_extend_error;

static std::string vformat(const char * fmt, va_list args) {
    char buf[512];
    vsnprintf(buf, sizeof(buf), fmt, args);
    return buf;
}

// keep and log a reason
LLAMA_ATTRIBUTE_FORMAT(1, 2)
static void set_error(const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    self_extend_error = vformat(fmt, args);
    va_end(args);

    LLAMA_LOG_ERROR("self_extend: %s\n", self_extend_error.c_str());
}

void llama_self_extend_refuse(const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    self_extend_error = vformat(fmt, args);
    va_end(args);

    throw std::runtime_error(self_extend_error);
}

//
// creation of a context
//

// check the pending parameters against the model and the context parameters
static bool resolve(
        const llama_self_extend_params & next,
                   const llama_model   & model,
        const llama_context_params     & params,
        llama_self_extend_config       & config) {
    const uint32_t n_ctx_train = model.hparams.n_ctx_train;
    const uint32_t ga_n        = next.ga_n;
    const uint32_t ga_w        = next.ga_w == LLAMA_SELF_EXTEND_GA_W_DEFAULT ? n_ctx_train/8 : next.ga_w;

    if (ga_w >= n_ctx_train) {
        set_error("ga_w is %u, it must be below the trained context of the model, %u tokens", ga_w, n_ctx_train);
        return false;
    }

    config = {
        /*.map         =*/ { ga_n, ga_w },
        /*.attn        =*/ next.attn,
        /*.n_ctx_train =*/ n_ctx_train,
        /*.n_ctx_reach =*/ 0,
    };
    config.n_ctx_reach = config.map.n_ctx_reach(n_ctx_train);

    // sequences that share one buffer may each be shorter than it; their positions are checked as they come
    const uint32_t n_seq_max = std::max(1u, params.n_seq_max);
    const uint32_t n_ctx     = params.n_ctx == 0 ? n_ctx_train : params.n_ctx;
    const uint32_t n_ctx_seq = params.kv_unified && n_seq_max > 1 ? 0 : n_ctx/n_seq_max;

    if (n_ctx_seq > config.n_ctx_reach) {
        const uint32_t ga_n_min = llama_self_extend_map_ga_n_min(n_ctx_train, ga_w, n_ctx_seq);

        set_error("n_ctx is %u, but ga_n = %u and ga_w = %u reach %" PRId64 " tokens on this model, which was trained on %u; "
                "the smallest ga_n that fits is %u", n_ctx_seq, ga_n, ga_w, config.n_ctx_reach, n_ctx_train, ga_n_min);
        return false;
    }

    return true;
}

llama_self_extend_scope::llama_self_extend_scope(const llama_model * model, const llama_context_params & params) {
    const auto next = self_extend_next;

    self_extend_next.reset();
    self_extend_error.clear();

    if (!next || next->ga_n == 1 || !model) {
        return;
    }

    llama_self_extend_config config;

    ok = resolve(*next, *model, params, config);

    if (ok) {
        self_extend_active = config;
    }
}

llama_self_extend_scope::~llama_self_extend_scope() {
    self_extend_active.reset();
}

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
    if (!self_extend_active) {
        return mem;
    }

    llama_memory_ptr owned(mem);

    check_memory(mem, model);

    return new llama_kv_cache_self_extend(model, cparams, *self_extend_active, std::move(owned));
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

//
// interface
//

llama_self_extend_params llama_self_extend_default_params(void) {
    return {
        /*.ga_n =*/ 1,
        /*.ga_w =*/ LLAMA_SELF_EXTEND_GA_W_DEFAULT,
        /*.attn =*/ LLAMA_SELF_EXTEND_ATTN_AUTO,
    };
}

bool llama_self_extend_set_next(llama_self_extend_params params) {
    if (params.ga_n < 1) {
        set_error("ga_n is %u, it must be at least 1", params.ga_n);
        return false;
    }
    if (params.attn < LLAMA_SELF_EXTEND_ATTN_AUTO || params.attn > LLAMA_SELF_EXTEND_ATTN_COMPOSED) {
        set_error("attn is %d, it must be one of the values of llama_self_extend_attn", (int) params.attn);
        return false;
    }

    self_extend_error.clear();
    self_extend_next = params;

    return true;
}

const char * llama_self_extend_last_error(void) {
    return self_extend_error.c_str();
}

bool llama_self_extend_get_info(const llama_context * ctx, llama_self_extend_info * info) {
    const auto * kv = ctx ? dynamic_cast<const llama_kv_cache_self_extend *>(llama_get_memory(ctx)) : nullptr;

    *info = kv ? kv->get_info() : llama_self_extend_info {};

    return kv != nullptr;
}

const char * llama_self_extend_build_info(void) {
    return "{"
        "\"version\": \""          LLAMA_SELF_EXTEND_VERSION          "\", "
        "\"build_id\": \""         LLAMA_SELF_EXTEND_BUILD_ID         "\", "
        "\"llama_cpp_python\": \"" LLAMA_SELF_EXTEND_LLAMA_CPP_PYTHON "\", "
        "\"llama_cpp_sha256\": \"" LLAMA_SELF_EXTEND_LLAMA_CPP_SHA256 "\", "
        "\"llama_cpp_commit\": \"" LLAMA_SELF_EXTEND_LLAMA_CPP_COMMIT "\", "
        "\"patches\": \""          LLAMA_SELF_EXTEND_PATCHES          "\", "
        "\"patches_sha256\": \""   LLAMA_SELF_EXTEND_PATCHES_SHA256   "\""
        "}";
}

const char * llama_self_extend_kernel_isa(void) {
    return llama_self_extend_attn_isa();
}

int64_t llama_self_extend_pos_q(int64_t pos, uint32_t ga_n, uint32_t ga_w) {
    return llama_self_extend_map { ga_n, ga_w }.pos_q(pos);
}

int64_t llama_self_extend_pos_k(int64_t pos, uint32_t ga_n) {
    return llama_self_extend_map { ga_n, 0 }.pos_k(pos);
}

int64_t llama_self_extend_pos_rel(int64_t pos_q, int64_t pos_k, uint32_t ga_n, uint32_t ga_w) {
    return llama_self_extend_map { ga_n, ga_w }.pos_rel(pos_q, pos_k);
}

int64_t llama_self_extend_pos_rel_max(int64_t n_tokens, uint32_t ga_n, uint32_t ga_w) {
    return llama_self_extend_map { ga_n, ga_w }.pos_rel_max(n_tokens);
}

int64_t llama_self_extend_n_ctx_reach(uint32_t n_ctx_train, uint32_t ga_n, uint32_t ga_w) {
    return llama_self_extend_map { ga_n, ga_w }.n_ctx_reach(n_ctx_train);
}

uint32_t llama_self_extend_ga_n_min(uint32_t n_ctx_train, uint32_t ga_w, int64_t n_tokens) {
    return llama_self_extend_map_ga_n_min(n_ctx_train, ga_w, n_tokens);
}
