#pragma once

#include "ggml.h"

#include <atomic>
#include <cstdint>
#include <memory>

//
// the fused attention on the CPU: one softmax over a far and a near set of (Q, K, V)
//

// the cells that a token may see lie within these, far and near counted separately
struct llama_self_extend_range {
    int32_t far_begin;
    int32_t far_end;
    int32_t near_begin;
    int32_t near_end;

    // all cells within are seen: the mask need not be read
    bool far_dense;
    bool near_dense;

    int32_t near_new; // the cell of the token itself
};

struct llama_self_extend_ops;

// has to outlive the graph
struct llama_self_extend_attn_params {
    float scale         = 1.0f; // of the scores
    float logit_softcap = 0.0f; // 0: none

    const llama_self_extend_range * ranges = nullptr; // [n_tokens], filled in before the graph is computed

    const llama_self_extend_ops * ops = nullptr; // nullptr: the best that the machine can run

    // what the threads agree by while they compute the node; 0 before and after
    std::atomic<int32_t> n_taken { 0 };
    std::atomic<int32_t> n_done  { 0 };
    std::unique_ptr<std::atomic<int32_t>[]> n_arrived; // at each tile
};

// Attention of one layer. The returned node runs on the CPU backend only.
//
// q_far, q_near  F32 [n_embd_head_k, n_head, n_tokens]
// k_far, k_near      [n_embd_head_k, n_head_kv, n_kv, n_stream]
// v_far, v_near      [n_embd_head_v, n_head_kv, n_kv, n_stream], or transposed [n_kv, n_head_kv, n_embd_head_v, n_stream]
// mask           F16 [n_kv_far + n_kv_near, n_tokens/n_stream, 1, n_stream], 0 or -INFINITY
// k_new          F32 [n_embd_head_k, n_head_kv, n_tokens], stored into k_near before it is read: each token in the cell that
// v_new          F32 [n_embd_head_v, n_head_kv, n_tokens]  its range names and that it sees. nullptr if they are there already
// sinks          F32 [n_head] or nullptr
//
// returns        F32 [n_embd_head_v, n_head, n_tokens], a view of the node
ggml_tensor * llama_self_extend_attn_build(
        ggml_context * ctx,
        ggml_tensor  * q_far,
        ggml_tensor  * k_far,
        ggml_tensor  * v_far,
        ggml_tensor  * q_near,
        ggml_tensor  * k_near,
        ggml_tensor  * v_near,
        ggml_tensor  * mask,
        ggml_tensor  * k_new,
        ggml_tensor  * v_new,
        ggml_tensor  * sinks,
        llama_self_extend_attn_params * params);

// Can k_new and v_new be given? For few tokens, where two nodes less are worth it.
bool llama_self_extend_attn_can_store(const ggml_tensor * q, const ggml_tensor * k);

// The instructions that it uses on this machine: "avx512", "avx2", "neon" or "portable".
const char * llama_self_extend_attn_isa();
