#pragma once

#include "llama-self-extend.h"
#include "positions/llama-self-extend-positions.h"

#include "llama-impl.h"

#include <cstdint>
#include <memory>

struct ggml_cgraph;
struct llama_context;
struct llama_cparams;
struct llama_memory_i;
struct llama_model;

class llama_kv_cache;
class llm_graph_result;

//
// what the patched llama.cpp calls
//

// the parameters of a context, checked against its model
struct llama_self_extend_config {
    llama_self_extend_map  map;
    llama_self_extend_attn attn;
    uint32_t               n_ctx_train;
    int64_t                n_ctx_reach;
};

// Takes the calling thread's pending parameters for as long as llama_init_from_model() runs.
struct llama_self_extend_scope {
    llama_self_extend_scope(const llama_model * model, const llama_context_params & params);
    ~llama_self_extend_scope();

    llama_self_extend_scope(const llama_self_extend_scope &) = delete;
    llama_self_extend_scope & operator=(const llama_self_extend_scope &) = delete;

    bool ok = true; // false: the parameters do not fit, the reason has been logged
};

// Takes over the memory that llama_model::create_memory() made.
// Returns it as it is for a plain context. Throws if it is not a KV cache, or its keys are not rotated.
llama_memory_i * llama_self_extend_init_memory(llama_memory_i * mem, const llama_model & model, const llama_cparams & cparams);

// How many nodes SelfExtend adds to a compute graph at the most, 0 for a plain context.
uint32_t llama_self_extend_n_nodes(const llama_memory_i * mem);

// The graph that carries out pending shifts of one part of our cache, nullptr if kv is none of ours.
ggml_cgraph * llama_self_extend_build_graph_shift(const llama_kv_cache & kv, llm_graph_result * res, llama_context * lctx);

// Carry out what is pending before a state is written: it holds no pending copies or shifts. Nothing for a plain context.
void llama_self_extend_update(llama_context & lctx);

// Keep the reason for llama_self_extend_last_error(), then throw it.
[[noreturn]]
LLAMA_ATTRIBUTE_FORMAT(1, 2)
void llama_self_extend_refuse(const char * fmt, ...);
