// ggml's choice of a kernel, as it is, and a note of it

#define ggml_cuda_flash_attn_ext ggml_cuda_flash_attn_ext_chosen
#include "fattn.cu"
#undef ggml_cuda_flash_attn_ext

#include "cuda-host.h"

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    switch (ggml_cuda_get_best_fattn_kernel(ctx.device, dst)) {
        case BEST_FATTN_KERNEL_VEC:     cuda_host_chosen(CUDA_HOST_VEC);  break;
        case BEST_FATTN_KERNEL_TILE:    cuda_host_chosen(CUDA_HOST_TILE); break;
        case BEST_FATTN_KERNEL_MMA_F16: cuda_host_chosen(CUDA_HOST_MMA);  break;
        case BEST_FATTN_KERNEL_NONE:    break;
    }
    ggml_cuda_flash_attn_ext_chosen(ctx, dst);
}
