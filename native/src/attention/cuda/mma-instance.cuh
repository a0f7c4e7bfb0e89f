#pragma once

#include "attention/cuda/mma.cuh"

#include "fattn-mma-f16.cuh"

#include <type_traits>

// what ggml compiles its kernel for: nothing else is ever launched
template <int D, int ncols1, int ncols2, bool softcap>
static constexpr __device__ bool llama_self_extend_mma_exists() {
    constexpr int ncols = ncols1*ncols2;

    if (softcap && D != 128 && D != 256) {
        return false;
    }
#if !defined(FLASH_ATTN_AVAILABLE)
    return ncols < 0;
#elif defined(AMD_WMMA_AVAILABLE)
    return ncols >= 16 && ncols2 > 1;
#elif defined(AMD_MFMA_AVAILABLE)
    return ncols >= 16;
#elif defined(VOLTA_MMA_AVAILABLE)
    return ncols >= 32;
#elif defined(TURING_MMA_AVAILABLE)
    return __CUDA_ARCH__ != GGML_CUDA_CC_TURING || ncols <= 32;
#else
    return ncols < 0;
#endif
}

template <int D, int ncols1, int ncols2, bool softcap>
__launch_bounds__(ggml_cuda_fattn_mma_get_nthreads(D, D, ncols1*ncols2), ggml_cuda_fattn_mma_get_occupancy(D, D, ncols1*ncols2))
static __global__ void llama_self_extend_attn_mma(const llama_self_extend_mma_args args) {
    ggml_cuda_pdl_sync();

    if constexpr (llama_self_extend_mma_exists<D, ncols1, ncols2, softcap>()) {
        constexpr int ncols     = ncols1*ncols2;
        constexpr int n_partial = llama_self_extend_mma_n_partial(D, ncols);
        constexpr int n_warps   = ggml_cuda_fattn_mma_get_nthreads(D, D, ncols)/ggml_cuda_get_physical_warp_size();

        const llama_self_extend_schedule & schedule = args.schedule;

        // the device function finds its output by blockIdx.x and gridDim.x: these are 0 and 1, the workers lie along y
        const int64_t worker = blockIdx.y;

        if (worker >= schedule.n_workers()) {
            return;
        }

        const int64_t unit_end = schedule.unit_begin(worker + 1);

        for (int64_t unit = schedule.unit_begin(worker); unit < unit_end; ) {
            const llama_self_extend_piece      piece = schedule.piece_at(unit, unit_end, worker);
            const llama_self_extend_mma_part & part  = args.parts[piece.part];

            const int stream  = piece.column / args.n_tiles_tokens;
            const int jt      = piece.column % args.n_tiles_tokens;
            const int head_kv = piece.head_tile / args.n_tiles_gqa;
            const int zt_gqa  = piece.head_tile % args.n_tiles_gqa;
            const int head    = head_kv*args.n_gqa + zt_gqa*ncols2;

            // where it stores: maximum and sum at ncols, the rows at 2*ncols
            float2 * partial = args.partial + int64_t(piece.slot)*n_partial - ncols;

            constexpr bool V_is_K_view = false;
            constexpr bool use_sparse  = false;
            constexpr bool needs_fixup = false;
            constexpr bool is_fixup    = true;

            flash_attn_ext_f16_process_tile<D, D, ncols1, ncols2, n_warps, softcap, V_is_K_view, use_sparse, needs_fixup, is_fixup>(
                    (const float2 *) (part.q + part.nb_q_stream*stream + part.nb_q_head*head),
                    (const half2  *) (part.k + part.nb_k_stream*stream + part.nb_k_head*head_kv),
                    (const half2  *) (part.v + part.nb_v_stream*stream + part.nb_v_head*head_kv),
                    (const half   *) (part.mask + args.nb_mask_stream*stream),
                    nullptr, nullptr, nullptr, partial,
                    args.scale, 1.0f, args.logit_softcap, args.n_tps, args.n_head, args.n_gqa, part.n_kv,
                    part.stride_q1, part.stride_q2, part.stride_k, part.stride_v, args.stride_mask,
                    jt, zt_gqa, piece.begin, piece.end);

            __syncthreads(); // the next piece uses the same shared memory

            unit += piece.end - piece.begin;
        }
    } else {
        GGML_UNUSED(args);
        NO_DEVICE_CODE;
    }
}

template <int D, int ncols1, int ncols2, bool softcap>
static llama_self_extend_mma_kernel_t llama_self_extend_mma_prepare(size_t n_bytes_shared) {
    const llama_self_extend_mma_kernel_t kernel = llama_self_extend_attn_mma<D, ncols1, ncols2, softcap>;

    static bool shared_memory_limit_raised[GGML_CUDA_MAX_DEVICES] = { false };

    const int device = ggml_cuda_get_device();
    if (!shared_memory_limit_raised[device]) {
        CUDA_CHECK(cudaFuncSetAttribute((const void *) kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes_shared));
        shared_memory_limit_raised[device] = true;
    }

    return kernel;
}

template <int D, int ncols2>
llama_self_extend_mma_kernel_t llama_self_extend_mma_kernel_of(int ncols1, bool softcap, size_t n_bytes_shared) {
    const auto prepare = [&](auto n) {
        constexpr int ncols = decltype(n)::value;

        if constexpr (D == 128 || D == 256) {
            if (softcap) {
                return llama_self_extend_mma_prepare<D, ncols/ncols2, ncols2, true>(n_bytes_shared);
            }
        }
        return llama_self_extend_mma_prepare<D, ncols/ncols2, ncols2, false>(n_bytes_shared);
    };

    GGML_UNUSED(softcap);

    switch (ncols1*ncols2) {
        case  8: return prepare(std::integral_constant<int,  8>());
        case 16: return prepare(std::integral_constant<int, 16>());
        case 32: return prepare(std::integral_constant<int, 32>());
        case 64: return prepare(std::integral_constant<int, 64>());
        default: return nullptr;
    }
}
