#pragma once

// the device that there is not: what a test sees of it

#include "ggml.h"

#include <cstddef>
#include <cstdint>

// compute capability, multiprocessors and blocks that each of them holds; the order in which the warps of a block run
void cuda_host_set_device(int cc, int n_multiprocessors, int n_blocks, bool last_warp_first);

enum cuda_host_kernel { CUDA_HOST_VEC, CUDA_HOST_TILE, CUDA_HOST_MMA, CUDA_HOST_N_KERNELS };

// what a node came to
struct cuda_host_trace {
    cuda_host_kernel kernel;     // ggml's choice
    int              n_launches; // of an attention kernel
    int              n_other;    // merges, conversions
};

// Does not return if a kernel breaks a rule of CUDA's, or writes behind memory of the pool.
cuda_host_trace cuda_host_compute(ggml_tensor * node);

// from fattn-choice.cu, where ggml has chosen
void cuda_host_chosen(cuda_host_kernel kernel);
