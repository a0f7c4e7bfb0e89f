#pragma once

#include "llama-self-extend-kernel.h"

#include "llama-graph.h"

#include <memory>
#include <vector>

class llama_kv_cache_self_extend;
class llama_kv_cache_self_extend_context;

//
// the attention input of the two-part cache
//
// the base class is the input of the near part: llm_graph_context::build_attn() stores the keys of a batch there as it
// would do in a plain cache. this class adds the far part next to it and replaces the attention itself
//

class llm_graph_input_self_extend : public llm_graph_input_attn_kv {
public:
    llm_graph_input_self_extend(const llm_graph_context & gctx, const llama_kv_cache_self_extend_context * mctx);
    ~llm_graph_input_self_extend() = default;

    void set_input(const llama_ubatch * ubatch) override;

    bool can_reuse(const llm_graph_params & params) override;

    // Build Q and K of a layer again, rotated at their grouped positions, and store K in the far part.
    // q_cur [n_embd_head, n_head, n_tokens], k_cur [n_embd_head, n_head_kv, n_tokens]: as the model made them
    void build_far(const llm_graph_context & gctx, ggml_tensor * q_cur, ggml_tensor * k_cur, int il);

    // Build the attention over both parts, after build_far() of the same layer.
    // q: the near queries, v_cur: the values of the batch, still to be stored in the far part
    // returns [n_embd_head_v*n_head, n_tokens]
    ggml_tensor * build_attn(
            const llm_graph_context & gctx,
            ggml_tensor * q,
            ggml_tensor * v_cur,
            ggml_tensor * kq_b,
            ggml_tensor * sinks,
                  float   kq_scale,
                    int   il);

private:
    ggml_tensor * build_attn_fused   (const llm_graph_context & gctx, ggml_tensor * q, ggml_tensor * sinks, float kq_scale, int il);
    ggml_tensor * build_attn_composed(const llm_graph_context & gctx, ggml_tensor * q, ggml_tensor * sinks, float kq_scale, int il);

    const llama_kv_cache_self_extend_context * mctx_se;

    ggml_tensor * pos_q  = nullptr; // I32 [n_batch]
    ggml_tensor * pos_k  = nullptr; // I32 [n_batch]
    ggml_tensor * k_idxs = nullptr; // I64 [n_batch]
    ggml_tensor * v_idxs = nullptr; // I64 [n_batch] or [n_batch*n_embd_v_gqa]
    ggml_tensor * mask   = nullptr; // F16 [n_far + n_near, n_batch/n_stream, 1, n_stream]

    const uint32_t n_far; // cells of each part
    const uint32_t n_near;

    ggml_tensor * q_far = nullptr; // of the layer that is being built

    // where the fused kernel has to look, for each token of the batch. the nodes of the graph point into these
    std::vector<llama_self_extend_range>                         ranges;
    std::vector<std::unique_ptr<llama_self_extend_attn_params>>  attn_params;
};

// the input for a context with SelfExtend, nullptr for a plain one
std::unique_ptr<llm_graph_input_self_extend> llama_self_extend_build_attn_inp(const llm_graph_context & gctx);
