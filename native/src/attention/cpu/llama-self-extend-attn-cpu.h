#pragma once

#include "attention/llama-self-extend-attn.h"

#include "ggml.h"

#include <atomic>
#include <cstdint>
#include <memory>

//
// the fused attention on the CPU: one softmax over a far and a near set of (Q, K, V)
//

struct llama_self_extend_ops;

// has to outlive the graph
struct llama_self_extend_attn_params {
    const llama_self_extend_range * ranges = nullptr; // [n_tokens], filled in before the graph is computed

    const llama_self_extend_ops * ops = nullptr; // nullptr: the best that the machine can run

    // what the threads agree by while they compute the node; 0 before and after
    std::atomic<int32_t> n_taken { 0 };
    std::atomic<int32_t> n_done  { 0 };
    std::unique_ptr<std::atomic<int32_t>[]> n_arrived; // at each tile
};

// The node of one layer, for the CPU backend. The new near keys and values, F32 [n_embd_head, n_head_kv, n_tokens], are stored
// before they are read: each token in the cell that its range names and that it sees. nullptr if they are there already.
// returns F32 [n_embd_head_v, n_head, n_tokens], a view of the node
ggml_tensor * llama_self_extend_attn_build(
        ggml_context                  * ctx,
        ggml_tensor * const             src[LLAMA_SELF_EXTEND_N_SRC],
        float                           scale,
        float                           logit_softcap,
        llama_self_extend_attn_params * params);

// Can the new keys and values be given? For few tokens, where two nodes less are worth it.
bool llama_self_extend_attn_can_store(const ggml_tensor * q, const ggml_tensor * k);

// The instructions that it uses on this machine: "avx512", "avx2", "neon" or "portable".
const char * llama_self_extend_attn_isa();
