#include "llama-self-extend.h"

#include "attention/cpu/llama-self-extend-attn-cpu.h"
#include "cache/llama-kv-cache-self-extend.h"
#include "graph/llama-graph-self-extend-plain.h"
#include "llama-self-extend-build.h"
#include "params/llama-self-extend-params.h"
#include "positions/llama-self-extend-positions.h"

#include "llama-context.h"
#include "llama-ext.h"
#include "llama-impl.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <vector>

//
// interface: what is in force, and what the library is; params/ has what sets the parameters
//

// nullptr: the context is not extended, or there is none
static const llama_kv_cache_self_extend * kv_of(const llama_context * ctx) {
    return ctx ? dynamic_cast<const llama_kv_cache_self_extend *>(llama_get_memory(ctx)) : nullptr;
}

bool llama_self_extend_get_info(const llama_context * ctx, llama_self_extend_info * info) {
    const auto * kv = kv_of(ctx);

    *info = kv ? kv->get_info() : llama_self_extend_info {};

    return kv != nullptr;
}

uint32_t llama_self_extend_get_group(const llama_context * ctx, llama_seq_id seq_id) {
    const auto * kv = kv_of(ctx);

    return kv && kv->has_seq(seq_id) ? kv->get_map(seq_id).ga_n : 0;
}

bool llama_self_extend_set_group(llama_context * ctx, llama_seq_id seq_id, uint32_t ga_n) {
    auto * kv = ctx ? dynamic_cast<llama_kv_cache_self_extend *>(llama_get_memory(ctx)) : nullptr;

    try {
        if (!kv) {
            llama_self_extend_refuse("the context is a plain one, its sequences have no groups");
        }
        kv->set_group(seq_id, ga_n);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return false;
    }

    llama_self_extend_accept();

    return true;
}

int32_t llama_self_extend_follow(llama_context * ctx, llama_seq_id seq_id, int32_t n_kept, int64_t n_tokens) {
    auto * kv = ctx ? dynamic_cast<llama_kv_cache_self_extend *>(llama_get_memory(ctx)) : nullptr;

    if (!kv || !kv->has_seq(seq_id)) {
        return n_kept;
    }

    try {
        if (kv->seq_rm(seq_id, n_kept, -1) && kv->follow(seq_id, n_kept, n_tokens)) {
            return n_kept;
        }
        kv->seq_rm(seq_id, -1, -1);
        kv->follow(seq_id, 0, n_tokens);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
    }

    return 0;
}

bool llama_self_extend_get_layer(const llama_context * ctx, int32_t il, llama_self_extend_layer * layer) {
    const auto * kv = kv_of(ctx);

    *layer = {};

    if (!kv || !kv->is_extended(il)) {
        return false;
    }

    const auto dev = llama_self_extend_dev_of(*kv->get_far(), il);

    layer->attn   = kv->get_way(il) == LLAMA_SELF_EXTEND_WAY_COMPOSED ? LLAMA_SELF_EXTEND_ATTN_COMPOSED : LLAMA_SELF_EXTEND_ATTN_FUSED;
    layer->device = dev ? ggml_backend_dev_name(dev) : "CPU";

    return true;
}

int32_t llama_self_extend_get_memory(const llama_context * ctx, llama_self_extend_memory * memory, int32_t n_max) {
    std::vector<llama_self_extend_memory> devices;

    for (const auto & [buft, data] : llama_get_memory_breakdown(ctx)) {
        // memory of the host that a device can read belongs to the machine
        const auto   dev  = ggml_backend_buft_is_host(buft) ? nullptr : ggml_backend_buft_get_device(buft);
        const char * name = dev ? ggml_backend_dev_name(dev) : "CPU";

        const auto is_it = [&](const llama_self_extend_memory & cur) { return strcmp(cur.device, name) == 0; };

        auto it = std::find_if(devices.begin(), devices.end(), is_it);
        if (it == devices.end()) {
            it = devices.insert(it, { name, 0, 0, 0 });
        }

        it->n_bytes_model   += data.model;
        it->n_bytes_cache   += data.context;
        it->n_bytes_compute += data.compute;
    }

    std::copy_n(devices.begin(), std::clamp<int32_t>(n_max, 0, devices.size()), memory);

    return devices.size();
}

const char * llama_self_extend_plain_shift_fault(const llama_context * ctx) {
    return llama_self_extend_find_shift_fault(*ctx);
}

void llama_self_extend_apply_shifts(llama_context * ctx) {
    try {
        ctx->memory_update(false);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
    }
}

bool llama_self_extend_device_is_fused(const char * device) {
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const auto dev    = ggml_backend_dev_get(i);
        const bool is_cpu = ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;

        const bool is_meant = device ? strcmp(device, ggml_backend_dev_name(dev)) == 0 : !is_cpu;

        if (is_meant && (is_cpu || llama_self_extend_attn_get_n_work(dev))) {
            return true;
        }
    }

    return false;
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

int64_t llama_self_extend_pos_q(int64_t pos, uint32_t ga_n, uint32_t ga_w, llama_self_extend_map_type map) {
    return llama_self_extend_map { ga_n, ga_w, map }.pos_q(pos);
}

int64_t llama_self_extend_pos_k(int64_t pos, uint32_t ga_n, llama_self_extend_map_type map) {
    return llama_self_extend_map { ga_n, 0, map }.pos_k(pos);
}

uint32_t llama_self_extend_pos_den(uint32_t ga_n, llama_self_extend_map_type map) {
    return llama_self_extend_map { ga_n, 0, map }.pos_den();
}

int64_t llama_self_extend_pos_rel(int64_t pos_q, int64_t pos_k, uint32_t ga_n, uint32_t ga_w, llama_self_extend_map_type map) {
    return llama_self_extend_map { ga_n, ga_w, map }.pos_rel(pos_q, pos_k);
}

int64_t llama_self_extend_pos_rel_max(int64_t n_tokens, uint32_t ga_n, uint32_t ga_w, llama_self_extend_map_type map) {
    return llama_self_extend_map { ga_n, ga_w, map }.pos_rel_max(n_tokens);
}

int64_t llama_self_extend_n_ctx_reach(uint32_t n_ctx_train, uint32_t ga_n, uint32_t ga_w, llama_self_extend_map_type map) {
    return llama_self_extend_map { ga_n, ga_w, map }.n_ctx_reach(n_ctx_train);
}

uint32_t llama_self_extend_ga_n_raised(
        uint32_t n_ctx_train, uint32_t ga_n, uint32_t ga_n_max, uint32_t ga_w, int64_t n_tokens, llama_self_extend_map_type map) {
    return llama_self_extend_map_raised({ ga_n, ga_w, map }, n_ctx_train, ga_n_max, n_tokens);
}

uint32_t llama_self_extend_ga_n_min(uint32_t n_ctx_train, uint32_t ga_w, int64_t n_tokens, llama_self_extend_map_type map) {
    return llama_self_extend_map_ga_n_min({ 1, ga_w, map }, n_ctx_train, n_tokens);
}

uint32_t llama_self_extend_ga_n_auto(uint32_t n_ctx_train, uint32_t ga_w, int64_t n_tokens, llama_self_extend_map_type map) {
    return llama_self_extend_map_ga_n_auto({ 1, ga_w, map }, n_ctx_train, n_tokens);
}
