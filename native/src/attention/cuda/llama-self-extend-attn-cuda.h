#pragma once

#include "attention/llama-self-extend-attn.h"

#include <cstddef>
#include <cstdint>

struct ggml_backend_cuda_context;

//
// the fused attention on CUDA, HIP and MUSA devices: what the patched backend calls
//
// The attention of each part is computed by ggml's own flash attention, by the kernel that it would take itself: we hand it a
// GGML_OP_FLASH_ATTN_EXT of our own making, and take over where it would launch the kernel.
//

// the bytes behind the result of a node that it needs, -1 if the device cannot compute it; of nodes that are none of ours as well
int64_t llama_self_extend_cuda_n_work(int device, const ggml_tensor * node);

void llama_self_extend_cuda_compute(ggml_backend_cuda_context & ctx, ggml_tensor * node);

// what ggml's launch_fattn() was asked to launch
struct llama_self_extend_cuda_kernel {
    const void * kernel; // fattn_kernel_t
    int          n_embd_v;
    int          ncols1; // tokens and heads of a tile
    int          ncols2;
    int          n_warps;
    size_t       n_bytes_shared;
    int          n_cells; // of a block
    bool         need_f16_k;
    bool         need_f16_v;
    bool         mma;
    int          warp_size;
};

// Returns false, and does nothing, if dst is not of our making.
bool llama_self_extend_cuda_launch(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const llama_self_extend_cuda_kernel & kernel);
