#pragma once

#include "ggml.h"
#include "ggml-backend.h"

#include <cstdint>
#include <cstring>
#include <vector>

//
// the fused attention as a node of a graph: one softmax over a far and a near set of (Q, K, V)
//
// The node is a GGML_OP_CUSTOM. ggml's own functions never look into it, so a backend has to be told of it: the CPU's calls
// the function in it, another one needs a file of ours and two call sites. What all of them agree on is written down here,
// and nothing else: this header is included by libraries that do not know one another.
//

// the sources of the node
enum llama_self_extend_attn_src {
    LLAMA_SELF_EXTEND_SRC_Q_FAR,  // F32 [n_embd_head_k, n_head, n_tokens]
    LLAMA_SELF_EXTEND_SRC_K_FAR,  //     [n_embd_head_k, n_head_kv, n_far, n_stream]
    LLAMA_SELF_EXTEND_SRC_V_FAR,  //     [n_embd_head_v, n_head_kv, n_far, n_stream]; on the CPU also transposed [n_far, n_head_kv, n_embd_head_v, n_stream]
    LLAMA_SELF_EXTEND_SRC_Q_NEAR, // as those of the far part, with n_near cells
    LLAMA_SELF_EXTEND_SRC_K_NEAR,
    LLAMA_SELF_EXTEND_SRC_V_NEAR,
    LLAMA_SELF_EXTEND_SRC_MASK,   // F16 [n_far + n_near, n_tokens/n_stream, 1, n_stream], 0 or -INFINITY
    LLAMA_SELF_EXTEND_SRC_AUX_0,  // CPU: the new near keys, or nullptr. others: the ranges, see below
    LLAMA_SELF_EXTEND_SRC_AUX_1,  // CPU: the new near values, or nullptr
    LLAMA_SELF_EXTEND_SRC_SINKS,  // F32 [n_head] or nullptr

    LLAMA_SELF_EXTEND_N_SRC
};

static_assert(LLAMA_SELF_EXTEND_N_SRC <= GGML_MAX_SRC, "too many sources for a node");

// The result is F32 [n_embd_head_v, n_head, n_tokens] at the beginning of the node; what follows is work space.
inline size_t llama_self_extend_attn_n_bytes_result(const ggml_tensor * node) {
    const ggml_tensor * q = node->src[LLAMA_SELF_EXTEND_SRC_Q_FAR];
    const ggml_tensor * v = node->src[LLAMA_SELF_EXTEND_SRC_V_FAR];

    return v->ne[0]*q->ne[1]*q->ne[2]*sizeof(float);
}

// the cells that a token may see lie within these, far and near counted separately
struct llama_self_extend_range {
    int32_t far_begin;
    int32_t far_end;
    int32_t near_begin;
    int32_t near_end;

    // 1: all cells within are seen, the mask need not be read
    int32_t far_dense;
    int32_t near_dense;

    int32_t near_new; // the cell of the token itself
    int32_t unused;
};

// The ranges as a tensor, for devices: I32 [8*n_tokens + 2*n_stream], a llama_self_extend_range for each token, and then for
// each stream the end of what any of its tokens sees, in cells rounded up to 256: n_stream far ones, then n_stream near ones.
constexpr int64_t LLAMA_SELF_EXTEND_N_RANGE = sizeof(llama_self_extend_range)/sizeof(int32_t);
constexpr int32_t LLAMA_SELF_EXTEND_PAD_END = 256;

static_assert(LLAMA_SELF_EXTEND_N_RANGE == 8, "a range is eight numbers");

//
// parameters: behind those of ggml's custom operators, in the same place
//

struct llama_self_extend_attn_op {
    static constexpr uint32_t MAGIC  = 0x4e545441; // "ATTN"
    static constexpr size_t   OFFSET = 32;         // in op_params, bytes

    uint32_t magic;
    float    scale;         // of the scores
    float    logit_softcap; // 0: none
};

static_assert(llama_self_extend_attn_op::OFFSET + sizeof(llama_self_extend_attn_op) <= GGML_MAX_OP_PARAMS, "no room for our parameters");

// The parameters of a node. Returns false if it is none of ours.
inline bool llama_self_extend_attn_get_op(const ggml_tensor * node, llama_self_extend_attn_op & op) {
    if (node->op != GGML_OP_CUSTOM) {
        return false;
    }
    memcpy(&op, (const char *) node->op_params + llama_self_extend_attn_op::OFFSET, sizeof(op));

    return op.magic == llama_self_extend_attn_op::MAGIC;
}

inline void llama_self_extend_attn_set_op(ggml_tensor * node, float scale, float logit_softcap) {
    const llama_self_extend_attn_op op = { llama_self_extend_attn_op::MAGIC, scale, logit_softcap };

    memcpy((char *) node->op_params + llama_self_extend_attn_op::OFFSET, &op, sizeof(op));
}

//
// what a backend offers that computes the node, through ggml_backend_reg_get_proc_address()
//
// Its supports_op says the same; but a backend that does not know the node may say yes to all nodes, and does not know the name.
//

#define LLAMA_SELF_EXTEND_ATTN_PROC "llama_self_extend_attn_n_work"

// How many bytes of work space it wants behind the result of a node, -1 if the device cannot compute the node.
// The sources need shapes, types and strides, no memory.
typedef int64_t (*llama_self_extend_attn_n_work_t)(ggml_backend_dev_t dev, const ggml_tensor * node);

// nullptr: the device's backend does not offer it
llama_self_extend_attn_n_work_t llama_self_extend_attn_get_n_work(ggml_backend_dev_t dev);


//
// building it
//

// the ranges as a tensor, and what it holds: each stream has the same number of tokens
ggml_tensor *        llama_self_extend_attn_new_bounds(ggml_context * ctx, int64_t n_tokens, int64_t n_stream);
std::vector<int32_t> llama_self_extend_attn_bounds(const std::vector<llama_self_extend_range> & ranges, int64_t n_stream);

// For the CPU: see cpu/llama-self-extend-attn-cpu.h. For another device, with all sources as above:
// returns F32 [n_embd_head_v, n_head, n_tokens], a view of the node; nullptr if the device cannot compute it
ggml_tensor * llama_self_extend_attn_build_device(
        ggml_context       * ctx,
        ggml_backend_dev_t   dev,
        ggml_tensor * const  src[LLAMA_SELF_EXTEND_N_SRC],
        float                scale,
        float                logit_softcap);

// of any device: fun and userdata as for ggml_custom_4d(), n_work: floats behind the result
ggml_tensor * llama_self_extend_attn_new_node(
        ggml_context       * ctx,
        ggml_tensor * const  src[LLAMA_SELF_EXTEND_N_SRC],
        float                scale,
        float                logit_softcap,
        int64_t              n_embd_v,
        int64_t              n_work,
        ggml_custom_op_t     fun,
        void               * userdata);
