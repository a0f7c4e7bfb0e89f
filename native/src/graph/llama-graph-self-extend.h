#pragma once

#include "attention/cpu/llama-self-extend-attn-cpu.h"
#include "rope/llama-self-extend-freqs.h"

#include "llama-graph.h"

#include <memory>
#include <vector>

class llama_self_extend_mctx;

//
// the input of the layers that are extended, and their attention
//
// llm_graph_context::build_attn() does the far part: it gets the far keys and queries in place of the model's, and stores as
// it would do in a plain cache. this class makes them, stores the near ones, and replaces the attention itself
//

class llm_graph_input_self_extend : public llm_graph_input_i {
public:
    llm_graph_input_self_extend(const llm_graph_context & gctx, const llama_self_extend_mctx * mctx);
    ~llm_graph_input_self_extend() = default;

    void set_input(const llama_ubatch * ubatch) override;

    bool can_reuse(const llm_graph_params & params) override;

    // Keep the near queries and keys, and put the far ones in their place.
    // q_cur [n_embd_head, n_head, n_tokens], k_cur [n_embd_head, n_head_kv, n_tokens]: as the model made them
    // k_rot: the Hadamard matrix of a quantized cache, which all of them are multiplied by, or nullptr
    void build_frames(const llm_graph_context & gctx, ggml_tensor *& q_cur, ggml_tensor *& k_cur, ggml_tensor * k_rot, int il);

    // Build the attention over both parts, after build_frames() of the same layer.
    // q: the far queries, v_cur: the values of the batch, to be stored in the near part with its keys
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
    // one node, nullptr if the device of the layer does not have it
    ggml_tensor * build_attn_fused   (const llm_graph_context & gctx, ggml_tensor * q, ggml_tensor * v_cur, ggml_tensor * sinks, float kq_scale, int il);
    ggml_tensor * build_attn_composed(const llm_graph_context & gctx, ggml_tensor * q, ggml_tensor * sinks, float kq_scale, int il);

    const llama_hparams hparams;
    const llama_cparams cparams;

    const llama_self_extend_mctx * mctx;

    // On the CPU a single token gets its near and its far frame from one RoPE node, of two positions: nodes are what its time
    // is spent on.
    const int64_t n_frames;

    llama_self_extend_freqs freqs; // of the far frames

    ggml_tensor * pos_q  = nullptr; // I32 [n_batch*n_frames], or 4 times as many with M-RoPE
    ggml_tensor * pos_k  = nullptr; // I32 [n_batch*n_frames], or 4 times as many with M-RoPE
    ggml_tensor * k_idxs = nullptr; // I64 [n_batch]
    ggml_tensor * v_idxs = nullptr; // I64 [n_batch] or [n_batch*n_embd_v_gqa]
    ggml_tensor * mask   = nullptr; // F16 [n_far + n_near, n_batch/n_stream, 1, n_stream]
    ggml_tensor * bounds = nullptr; // I32, the ranges for devices; left unallocated where no layer is fused on one

    const uint32_t n_raised; // of the cache, when the graph was built

    const uint32_t n_far; // cells of each part
    const uint32_t n_near;

    ggml_tensor * q_near = nullptr; // of the layer that is being built
    ggml_tensor * k_near = nullptr;
    bool          stores = false; // does the kernel store its near keys and values?

    // where the fused kernel has to look, for each token of the batch. the nodes of the graph point into these
    std::vector<llama_self_extend_range>                         ranges;
    std::vector<std::unique_ptr<llama_self_extend_attn_params>>  attn_params;
};

// The input for the attention of a layer, nullptr if the layer is not extended. One for all layers of a graph.
llm_graph_input_self_extend * llama_self_extend_attn_inp(const llm_graph_context & gctx, int il);
