#pragma once

#include "attention/cuda/schedule.h"

#include "common.cuh"

//
// ggml's tensor-core kernel for one tile, over both parts
//
// Its device function for a tile can leave a partial result: the sums, not divided, with maximum and sum of the weights. That
// is what it is called for here, for each piece of the schedule.
//

// strides in the units of the device function
struct llama_self_extend_mma_part {
    const char * q;
    const char * k;
    const char * v;
    const char * mask;

    int32_t n_kv;
    int32_t stride_q1; // float2
    int32_t stride_q2;
    int32_t stride_k;  // half2
    int32_t stride_v;

    int64_t nb_q_head; // bytes
    int64_t nb_q_stream;
    int64_t nb_k_head;
    int64_t nb_k_stream;
    int64_t nb_v_head;
    int64_t nb_v_stream;
};

struct llama_self_extend_mma_args {
    llama_self_extend_schedule schedule;
    llama_self_extend_mma_part parts[2];

    float2 * partial; // [n_slots, llama_self_extend_mma_n_partial()]

    float   scale;
    float   logit_softcap;
    uint3   n_tps; // for fastmodulo()
    int32_t n_head;
    int32_t n_gqa;
    int32_t n_tiles_gqa;    // head tiles of a KV head
    int32_t n_tiles_tokens; // columns of a stream
    int32_t stride_mask;    // half
    int64_t nb_mask_stream; // bytes
};

typedef void (* llama_self_extend_mma_kernel_t)(llama_self_extend_mma_args args);

// The kernel of a tile size, ready to be launched on the current device; nullptr if there is none.
llama_self_extend_mma_kernel_t llama_self_extend_mma_kernel(int n_embd, int ncols1, int ncols2, bool softcap, size_t n_bytes_shared);

// of a head size and a number of heads: defined in mma-instance.cuh, and compiled in one file each, side by side
template <int D, int ncols2>
llama_self_extend_mma_kernel_t llama_self_extend_mma_kernel_of(int ncols1, bool softcap, size_t n_bytes_shared);

// A partial result in float2: maximum and sum of each row, then the rows.
static constexpr __host__ __device__ int llama_self_extend_mma_n_partial(int D, int ncols) {
    return ncols*(1 + D/2);
}
