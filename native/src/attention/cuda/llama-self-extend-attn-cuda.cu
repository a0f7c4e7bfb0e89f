#include "attention/cuda/llama-self-extend-attn-cuda.h"

#include "attention/cuda/merge.cuh"
#include "attention/cuda/mma.cuh"

#include "fattn-common.cuh"
#include "fattn.cuh"

#include <algorithm>
#include <limits>
#include <type_traits>

enum { FAR, NEAR, N_PARTS };

//
// a part of a node, as an operator of ggml's
//

// in GGML_OP_FLASH_ATTN_EXT, one more than it has itself
constexpr int SRC_NODE = 5;

// one part as a GGML_OP_FLASH_ATTN_EXT: its tensors have the shapes that ggml_flash_attn_ext() wants, and the node's memory
struct part_op {
    ggml_tensor q;
    ggml_tensor k;
    ggml_tensor v;
    ggml_tensor mask;
    ggml_tensor dst;

    // the tensors point to one another
    part_op(const part_op &) = delete;
    part_op & operator=(const part_op &) = delete;

    part_op(const ggml_tensor * node, const llama_self_extend_attn_op & op, int part) {
        const int i = part == FAR ? LLAMA_SELF_EXTEND_SRC_Q_FAR : LLAMA_SELF_EXTEND_SRC_Q_NEAR;

        q    = *node->src[i + 0];
        k    = *node->src[i + 1];
        v    = *node->src[i + 2];
        mask = *node->src[LLAMA_SELF_EXTEND_SRC_MASK];

        const int64_t n_stream = k.ne[3];
        const int64_t n_tps    = q.ne[2]/n_stream;

        // heads after tokens and cells
        q.ne[2] = n_tps;
        q.ne[3] = n_stream;
        q.nb[3] = n_tps*q.nb[2];
        for (ggml_tensor * t : { &q, &k, &v }) {
            std::swap(t->ne[1], t->ne[2]);
            std::swap(t->nb[1], t->nb[2]);
        }

        const int64_t n_kv  = k.ne[1];
        const int64_t n_far = node->src[LLAMA_SELF_EXTEND_SRC_K_FAR]->ne[2];

        mask.data  = mask.data ? (char *) mask.data + (part == FAR ? 0 : n_far*mask.nb[0]) : nullptr;
        mask.ne[0] = n_kv;

        dst       = *node;
        dst.op    = GGML_OP_FLASH_ATTN_EXT;
        dst.ne[0] = v.ne[0];
        dst.ne[1] = q.ne[2];
        dst.ne[2] = n_tps;
        dst.ne[3] = n_stream;
        for (int d = 1; d < GGML_MAX_DIMS; ++d) {
            dst.nb[d] = dst.nb[d - 1]*dst.ne[d - 1];
        }

        // ref: ggml_flash_attn_ext()
        const float params[] = { op.scale, 0.0f, op.logit_softcap };
        memset(dst.op_params, 0, sizeof(dst.op_params));
        memcpy(dst.op_params, params, sizeof(params));

        std::fill(std::begin(dst.src), std::end(dst.src), nullptr);
        dst.src[0] = &q;
        dst.src[1] = &k;
        dst.src[2] = &v;
        dst.src[3] = &mask;
        dst.src[SRC_NODE] = const_cast<ggml_tensor *>(node);
    }
};

//
// work space: K and V of both parts in F16, for kernels that want it
//

constexpr size_t ALIGN_WORK = 128;

static size_t n_bytes_f16(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F16 ? 0 : GGML_PAD(ggml_nelements(t)*sizeof(half), ALIGN_WORK);
}

int64_t llama_self_extend_cuda_n_work(int device, const ggml_tensor * node) {
    llama_self_extend_attn_op op;
    if (!llama_self_extend_attn_get_op(node, op)) {
        return -1;
    }

    const ggml_tensor * bounds = node->src[LLAMA_SELF_EXTEND_SRC_AUX_0];

    if (!bounds || bounds->type != GGML_TYPE_I32 || node->src[LLAMA_SELF_EXTEND_SRC_AUX_1]) {
        return -1; // built for the CPU
    }

    const part_op far (node, op, FAR);
    const part_op near(node, op, NEAR);

    const int64_t n_embd = far.k.ne[0];

    const bool is_size = n_embd == 64 || n_embd == 80 || n_embd == 96 || n_embd == 112 || n_embd == 128 || n_embd == 256;

    // ggml compiles the soft-cap for these only, and skips the kernel for others without a word
    const bool is_softcap = op.logit_softcap == 0.0f || n_embd == 128 || n_embd == 256;

    if (!is_size || !is_softcap || far.v.ne[0] != n_embd || near.v.ne[0] != n_embd) {
        return -1;
    }

    size_t res = 0;

    for (const part_op * part : { &far, &near }) {
        // the kernel reads whole blocks of cells
        if (part->k.ne[1] % FATTN_KQ_STRIDE != 0 || !ggml_cuda_flash_attn_ext_supported(device, &part->dst)) {
            return -1;
        }
        for (const ggml_tensor * t : { &part->q, &part->k, &part->v, &part->mask }) {
            for (int d = 1; d < GGML_MAX_DIMS && !ggml_is_quantized(t->type); ++d) {
                if (t->nb[d] % 16 != 0) {
                    return -1;
                }
            }
        }
        res += n_bytes_f16(&part->k) + n_bytes_f16(&part->v);
    }

    if (far.k.type != near.k.type || far.v.type != near.v.type) {
        return -1;
    }

    // the far part decides which kernel it is
    const bool converts = ggml_cuda_flash_attn_ext_get_alloc_size(device, &far.dst) > ggml_nbytes(&far.dst);

    return converts ? res + ALIGN_WORK : 0;
}

// where K or V are to be read from
struct cache_view {
    const char * data;
    int64_t      nb[GGML_MAX_DIMS];
};

// ref: launch_fattn()
static cache_view view_of(const ggml_tensor * t, bool need_f16, char *& work, cudaStream_t stream) {
    if (!need_f16 || t->type == GGML_TYPE_F16) {
        return { (const char *) t->data, { int64_t(t->nb[0]), int64_t(t->nb[1]), int64_t(t->nb[2]), int64_t(t->nb[3]) } };
    }

    half * dst = (half *) work;
    work += n_bytes_f16(t);

    const int64_t n_block = ggml_blck_size(t->type);
    const int64_t n_bytes = ggml_type_size(t->type);

    cache_view res = { (const char *) dst, { sizeof(half) } };

    if (ggml_is_contiguously_allocated(t)) {
        ggml_get_to_fp16_cuda(t->type)(t->data, dst, ggml_nelements(t), stream);

        for (int d = 1; d < GGML_MAX_DIMS; ++d) {
            res.nb[d] = t->nb[d]/n_bytes*n_block*sizeof(half);
        }
    } else {
        ggml_get_to_fp16_nc_cuda(t->type)(t->data, dst, t->ne[0], t->ne[1], t->ne[2], t->ne[3],
                t->nb[1]/n_bytes, t->nb[2]/n_bytes, t->nb[3]/n_bytes, stream);

        for (int d = 1; d < GGML_MAX_DIMS; ++d) {
            res.nb[d] = res.nb[d - 1]*t->ne[d - 1];
        }
    }

    return res;
}

//
// launches
//

struct launch {
    ggml_backend_cuda_context &           ctx;
    const llama_self_extend_cuda_kernel & kernel;
    const ggml_tensor *                   node;

    const llama_self_extend_attn_op op;

    const part_op far;
    const part_op near;

    const part_op * parts[N_PARTS] = { &far, &near };

    cache_view k[N_PARTS];
    cache_view v[N_PARTS];

    const int n_embd;
    const int n_head;
    const int n_head_kv;
    const int n_gqa;
    const int n_stream;
    const int n_tps;
    const int n_tokens;

    const int n_tiles_tokens;
    const int n_tiles_gqa;

    const llama_self_extend_range * ranges;
    const int32_t                 * ends; // [n_stream, N_PARTS]
    const float                   * sinks;
    float                         * dst;

    launch(ggml_backend_cuda_context & ctx, const llama_self_extend_cuda_kernel & kernel, const ggml_tensor * node, const llama_self_extend_attn_op & op) :
        ctx(ctx), kernel(kernel), node(node), op(op), far(node, op, FAR), near(node, op, NEAR),
        n_embd        (far.k.ne[0]),
        n_head        (far.q.ne[2]),
        n_head_kv     (far.k.ne[2]),
        n_gqa         (n_head/n_head_kv),
        n_stream      (far.k.ne[3]),
        n_tps         (far.q.ne[1]),
        n_tokens      (n_tps*n_stream),
        n_tiles_tokens((n_tps + kernel.ncols1 - 1)/kernel.ncols1),
        n_tiles_gqa   ((n_gqa + kernel.ncols2 - 1)/kernel.ncols2),
        ranges((const llama_self_extend_range *) node->src[LLAMA_SELF_EXTEND_SRC_AUX_0]->data),
        ends  ((const int32_t *) (ranges + n_tokens)),
        sinks (node->src[LLAMA_SELF_EXTEND_SRC_SINKS] ? (const float *) node->src[LLAMA_SELF_EXTEND_SRC_SINKS]->data : nullptr),
        dst   ((float *) node->data) {
        GGML_ASSERT(kernel.n_embd_v == n_embd);

        char * const begin = (char *) GGML_PAD((uintptr_t) node->data + ggml_nbytes(&far.dst), ALIGN_WORK);
        char *       work  = begin;

        for (int p = 0; p < N_PARTS; ++p) {
            k[p] = view_of(&parts[p]->k, kernel.need_f16_k, work, ctx.stream());
            v[p] = view_of(&parts[p]->v, kernel.need_f16_v, work, ctx.stream());
        }

        GGML_ASSERT(work == begin || work <= (const char *) node->data + ggml_nbytes(node));
    }

    float scale() const {
        return op.logit_softcap != 0.0f ? op.scale/op.logit_softcap : op.scale;
    }

    dim3 rows() const {
        return dim3(n_tokens, n_head);
    }

    void run_mma();
    void run_parts();

private:
    int n_blocks_resident(const void * function) const {
        int res = 0;
        CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&res, function, kernel.warp_size*kernel.n_warps, kernel.n_bytes_shared));
        GGML_ASSERT(res > 0);

        return res*ggml_cuda_info().devices[ctx.device].nsm;
    }
};

// the tensor-core kernel: both parts of all tiles in one launch, cut by the schedule
void launch::run_mma() {
    const auto function = llama_self_extend_mma_kernel(n_embd, kernel.ncols1, kernel.ncols2, op.logit_softcap != 0.0f, kernel.n_bytes_shared);
    GGML_ASSERT(function);

    const int n_columns    = n_stream*n_tiles_tokens;
    const int n_head_tiles = n_head_kv*n_tiles_gqa;
    const int n_workers    = n_blocks_resident((const void *) function);
    const int n_partial    = llama_self_extend_mma_n_partial(n_embd, kernel.ncols1*kernel.ncols2);

    ggml_cuda_pool_alloc<llama_self_extend_column> columns(ctx.pool(), n_columns + 1);
    ggml_cuda_pool_alloc<float2>                   partial(ctx.pool(), llama_self_extend_schedule::n_slots(n_head_tiles, n_columns, n_workers)*n_partial);

    ggml_cuda_kernel_launch(llama_self_extend_find_columns,
            ggml_cuda_kernel_launch_params(dim3(1), dim3(LLAMA_SELF_EXTEND_N_THREADS_COLUMNS), 0, ctx.stream()),
            ranges, columns.ptr, n_columns, n_tps, kernel.ncols1, kernel.n_cells);

    llama_self_extend_mma_args args = {};

    args.schedule       = { columns.ptr, n_columns, n_head_tiles, n_workers };
    args.partial        = partial.ptr;
    args.scale          = scale();
    args.logit_softcap  = op.logit_softcap;
    args.n_tps          = init_fastdiv_values(n_tps);
    args.n_head         = n_head;
    args.n_gqa          = n_gqa;
    args.n_tiles_gqa    = n_tiles_gqa;
    args.n_tiles_tokens = n_tiles_tokens;
    args.stride_mask    = far.mask.nb[1]/sizeof(half);
    args.nb_mask_stream = far.mask.nb[3];

    for (int p = 0; p < N_PARTS; ++p) {
        const ggml_tensor & q = parts[p]->q;

        auto & part = args.parts[p];

        part.q           = (const char *) q.data;
        part.k           = k[p].data;
        part.v           = v[p].data;
        part.mask        = (const char *) parts[p]->mask.data;
        part.n_kv        = parts[p]->k.ne[1];
        part.stride_q1   = q.nb[1]/sizeof(float2);
        part.stride_q2   = q.nb[2]/sizeof(float2);
        part.stride_k    = k[p].nb[1]/sizeof(half2);
        part.stride_v    = v[p].nb[1]/sizeof(half2);
        part.nb_q_head   = q.nb[2];
        part.nb_q_stream = q.nb[3];
        part.nb_k_head   = k[p].nb[2];
        part.nb_k_stream = k[p].nb[3];
        part.nb_v_head   = v[p].nb[2];
        part.nb_v_stream = v[p].nb[3];
    }

    ggml_cuda_kernel_launch(function,
            ggml_cuda_kernel_launch_params(dim3(1, n_workers), dim3(kernel.warp_size, kernel.n_warps), kernel.n_bytes_shared, ctx.stream()), args);

    ggml_cuda_kernel_launch(llama_self_extend_merge_pieces, ggml_cuda_kernel_launch_params(rows(), dim3(n_embd), 0, ctx.stream()),
            args.schedule, (const float2 *) partial.ptr, sinks, dst, n_gqa, n_tps, kernel.ncols1, kernel.ncols2, n_partial);
}

// The vector and tile kernels, which leave partial results where several blocks share a row. Where there is one stream and one
// tile of tokens (decode) the parts are handed over as two sequences of one launch: for all that the kernel knows, they are.
void launch::run_parts() {
    const auto function = (fattn_kernel_t) kernel.kernel;

    const ggml_tensor & q_far  = far .q;
    const ggml_tensor & q_near = near.q;

    const int64_t nb_q_part = (const char *) q_near.data - (const char *) q_far.data;

    const auto same_strides = [](const auto & a, const auto & b) { return a.nb[1] == b.nb[1] && a.nb[2] == b.nb[2]; };

    const bool is_one = n_stream == 1 && n_tiles_tokens == 1 &&
        same_strides(q_far, q_near) && same_strides(k[FAR], k[NEAR]) && same_strides(v[FAR], v[NEAR]) &&
        nb_q_part >= std::numeric_limits<int32_t>::min() && nb_q_part <= std::numeric_limits<int32_t>::max();

    const int n_sequences = is_one ? N_PARTS : n_stream; // of a launch
    const int n_kv_max    = std::max(far.k.ne[1], near.k.ne[1]);
    const int n_tiles     = n_tiles_tokens*n_tiles_gqa*n_head_kv*n_sequences;
    const int n_resident  = n_blocks_resident(kernel.kernel);
    const int n_cells     = std::max(1, (n_kv_max + kernel.n_cells - 1)/kernel.n_cells);

    // as many blocks for each tile as fill the device, but more than one, or there would be no partial results
    const int n_split = std::max(2, std::min(n_cells, n_resident/n_tiles));

    const int64_t n_rows = int64_t(n_tokens)*n_head;

    ggml_cuda_pool_alloc<float>  partial(ctx.pool(), N_PARTS*n_rows*n_split*n_embd);
    ggml_cuda_pool_alloc<float2> meta   (ctx.pool(), N_PARTS*n_rows*n_split);

    const uint3    fd_n_tps    = init_fastdiv_values(n_tps);
    const uint32_t n_head_log2 = 1; // of ALiBi, which is off
    const float    max_bias    = 0.0f;
    const float    slope       = 1.0f;
    const dim3     n_blocks(n_tiles_tokens, n_split, n_tiles_gqa*n_head_kv*n_sequences);

    for (int p = 0; p < (is_one ? 1 : N_PARTS); ++p) {
        const part_op & part = *parts[p];

        const int64_t nb_q = is_one ? nb_q_part                              : part.q.nb[3];
        const int64_t nb_k = is_one ? k[NEAR].data - k[FAR].data             : k[p].nb[3];
        const int64_t nb_v = is_one ? v[NEAR].data - v[FAR].data             : v[p].nb[3];
        const int64_t nb_m = is_one ? far.k.ne[1]*int64_t(far.mask.nb[0])    : part.mask.nb[3];

        // the end of what is seen, where it does not depend on the tile
        const int * kv_max = n_tiles_tokens == 1 ? ends + p*n_stream : nullptr;

        // With it the number of cells is of no use but as the stride of the mask, for which the vector kernel takes it. That one
        // has as many tokens in a tile as there are.
        const int64_t n_kv = kv_max ? part.mask.nb[1]/sizeof(half) : part.k.ne[1];

        ggml_cuda_kernel_launch(function,
                ggml_cuda_kernel_launch_params(n_blocks, dim3(kernel.warp_size, kernel.n_warps), kernel.n_bytes_shared, ctx.stream()),
                (const char *) part.q.data, k[p].data, v[p].data, (const char *) part.mask.data, (const char *) nullptr, kv_max,
                partial.ptr + p*n_rows*n_split*n_embd, meta.ptr + p*n_rows*n_split,
                scale(), max_bias, slope, slope, n_head_log2, op.logit_softcap,
                int32_t(n_embd), fd_n_tps, int32_t(n_head), int32_t(n_sequences),
                int32_t(part.q.nb[1]), int32_t(part.q.nb[2]), int32_t(nb_q),
                int32_t(n_embd), int32_t(n_kv), int32_t(n_head_kv), int32_t(n_sequences),
                int32_t(k[p].nb[1]), int32_t(k[p].nb[2]), nb_k,
                int32_t(v[p].nb[1]), int32_t(v[p].nb[2]), nb_v,
                int32_t(n_tps), int32_t(1), int32_t(n_sequences),
                int32_t(part.mask.nb[1]), int32_t(part.mask.nb[2]), nb_m);
    }

    ggml_cuda_kernel_launch(llama_self_extend_merge_parts, ggml_cuda_kernel_launch_params(rows(), dim3(n_embd), 0, ctx.stream()),
            (const float *) partial.ptr, (const float2 *) meta.ptr, sinks, dst, n_split);
}

bool llama_self_extend_cuda_launch(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const llama_self_extend_cuda_kernel & kernel) {
    const ggml_tensor * node = dst->src[SRC_NODE];

    llama_self_extend_attn_op op;
    if (!node || !llama_self_extend_attn_get_op(node, op)) {
        return false;
    }

    launch cur(ctx, kernel, node, op);

    kernel.mma ? cur.run_mma() : cur.run_parts();

    return true;
}

void llama_self_extend_cuda_compute(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    llama_self_extend_attn_op op;
    GGML_ASSERT(llama_self_extend_attn_get_op(node, op));

    part_op far(node, op, FAR);

    // comes back to llama_self_extend_cuda_launch() with the kernel that ggml takes
    ggml_cuda_flash_attn_ext(ctx, &far.dst);
}

llama_self_extend_mma_kernel_t llama_self_extend_mma_kernel(int n_embd, int ncols1, int ncols2, bool softcap, size_t n_bytes_shared) {
    const auto of = [&](auto d) -> llama_self_extend_mma_kernel_t {
        constexpr int D = decltype(d)::value;

        switch (ncols2) {
            case 1: return llama_self_extend_mma_kernel_of<D, 1>(ncols1, softcap, n_bytes_shared);
            case 2: return llama_self_extend_mma_kernel_of<D, 2>(ncols1, softcap, n_bytes_shared);
            case 4: return llama_self_extend_mma_kernel_of<D, 4>(ncols1, softcap, n_bytes_shared);
            case 8: return llama_self_extend_mma_kernel_of<D, 8>(ncols1, softcap, n_bytes_shared);
            default: return nullptr;
        }
    };

    switch (n_embd) {
        case  64: return of(std::integral_constant<int,  64>());
        case  80: return of(std::integral_constant<int,  80>());
        case  96: return of(std::integral_constant<int,  96>());
        case 112: return of(std::integral_constant<int, 112>());
        case 128: return of(std::integral_constant<int, 128>());
        case 256: return of(std::integral_constant<int, 256>());
        default:  return nullptr;
    }
}
