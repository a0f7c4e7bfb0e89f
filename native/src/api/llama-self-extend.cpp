#include "llama-self-extend.h"

#include "attention/cpu/llama-self-extend-attn-cpu.h"
#include "cache/llama-kv-cache-self-extend.h"
#include "llama-self-extend-build.h"
#include "positions/llama-self-extend-positions.h"

//
// interface: what is in force, and what the library is; params/ has what sets the parameters
//

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
