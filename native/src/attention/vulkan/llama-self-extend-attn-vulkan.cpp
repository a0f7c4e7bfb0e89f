#include "attention/vulkan/llama-self-extend-attn-vulkan.h"

#include "attention/llama-self-extend-attn.h"
#include "attention/vulkan/parts.h"

#include "ggml-vulkan-common.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

//
// ggml's flash attention divides a long row of cells into pieces, and leaves for each the sum, the maximum of the scores
// and the sum of the weights: what a softmax over two parts needs. So each part is a dispatch of ggml's own shaders, and a
// shader of ours joins the pieces of both. The pieces of ggml's shaders are told apart from whole rows by there being more
// than one, so there are at least two of each part
//
// The shaders take the length of a row of the mask for the number of cells. Both parts lie in one row, so they are given
// its whole length, and the mask of the near part begins n_far further on. That no piece reaches beyond its part is then
// for us to see to: all pieces of a part are whole blocks, and of the same length
//

//
// what a device is asked
//

static vk_device get_device(ggml_backend_dev_t dev) {
    return ggml_vk_get_device(((const ggml_backend_vk_device_context *) dev->context)->device);
}

// as in ggml's supports_op of its own flash attention
static bool can_read(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_IQ4_NL:
            return true;
        default:
            return false;
    }
}

// the bytes of a node, -1 if the device cannot compute it
static int64_t get_n_bytes(ggml_backend_dev_t dev, const ggml_tensor * node) {
    llama_self_extend_attn_op op;
    if (!llama_self_extend_attn_get_op(node, op)) {
        return -1;
    }

    const vk_device device = get_device(dev);

    const auto & limits = device->properties.limits;

    if (!device->coopmat2 && !(device->subgroup_shuffle && device->subgroup_vote)) {
        return -1;
    }

    const auto * mask  = node->src[LLAMA_SELF_EXTEND_SRC_MASK];
    const auto * sinks = node->src[LLAMA_SELF_EXTEND_SRC_SINKS];

    for (const auto * src : { node->src + LLAMA_SELF_EXTEND_SRC_Q_FAR, node->src + LLAMA_SELF_EXTEND_SRC_Q_NEAR }) {
        const ggml_type type_k = src[1]->type;
        const ggml_type type_v = src[2]->type;

        if (src[0]->type != GGML_TYPE_F32 || !can_read(type_k) || !can_read(type_v) ||
                (type_k == GGML_TYPE_BF16) != (type_v == GGML_TYPE_BF16)) {
            return -1;
        }
    }

    if (mask->type != GGML_TYPE_F16 || !ggml_is_contiguous(mask) || (sinks && sinks->type != GGML_TYPE_F32)) {
        return -1;
    }

    llama_self_extend_vk_part parts[2];

    const int64_t n_bytes = llama_self_extend_vk_init_parts(parts, device, node);

    const auto n_far  = parts[0].n_kv();
    const auto n_near = parts[1].n_kv();

    if (n_bytes < 0 || n_far + n_near != uint64_t(mask->ne[0]) || mask->ne[2] != 1 || mask->ne[3] != parts[0].k->ne[3] ||
            n_far*sizeof(ggml_fp16_t) % limits.minStorageBufferOffsetAlignment != 0 || parts[0].q->ne[2] > limits.maxComputeWorkGroupCount[0]) {
        return -1;
    }
    for (const auto * src : node->src) {
        if (src && ggml_nbytes(src) > limits.maxStorageBufferRange) {
            return -1;
        }
    }
    return n_bytes;
}

bool llama_self_extend_attn_vulkan_supports(ggml_backend_dev_t dev, const ggml_tensor * node) {
    const int64_t n_bytes = get_n_bytes(dev, node);

    return n_bytes >= 0 && uint64_t(n_bytes) <= ggml_nbytes(node);
}

static int64_t get_n_work(ggml_backend_dev_t dev, const ggml_tensor * node) {
    const int64_t n_bytes = get_n_bytes(dev, node);

    return n_bytes < 0 ? -1 : n_bytes - int64_t(llama_self_extend_attn_n_bytes_result(node));
}

void * llama_self_extend_attn_vulkan_proc(ggml_backend_reg_t reg, const char * name) {
    GGML_UNUSED(reg);

    const llama_self_extend_attn_n_work_t n_work = get_n_work;

    return strcmp(name, LLAMA_SELF_EXTEND_ATTN_PROC) == 0 ? (void *) n_work : nullptr;
}

uint64_t llama_self_extend_attn_vulkan_n_flops(const ggml_tensor * node) {
    llama_self_extend_attn_op op;
    if (!llama_self_extend_attn_get_op(node, op)) {
        return 0;
    }

    const ggml_tensor * q    = node->src[LLAMA_SELF_EXTEND_SRC_Q_FAR];
    const ggml_tensor * v    = node->src[LLAMA_SELF_EXTEND_SRC_V_FAR];
    const ggml_tensor * mask = node->src[LLAMA_SELF_EXTEND_SRC_MASK];

    return 2ull*q->ne[1]*q->ne[2]*(q->ne[0] + v->ne[0])*mask->ne[0];
}

//
// pipelines
//

// SPIR-V of merge.comp
static const uint32_t MERGE[] = {
#include "llama-self-extend-attn-merge.spv.inc"
};

struct merge_constants {
    uint32_t n_embd_v;
    uint32_t n_head;
    uint32_t n_rows;
    uint32_t n_far;
    uint32_t n_near;
    uint32_t has_sinks;
};

static constexpr uint32_t MERGE_N = 64; // threads, each for a number of a row

static vk_pipeline create_merge_pipeline(const vk_device & device) {
    auto res = std::make_shared<vk_pipeline_struct>();

    res->name               = "self_extend_attn_merge";
    res->push_constant_size = sizeof(merge_constants);
    res->parameter_count    = 4;
    res->wg_denoms          = { 1, 1, 1 };
    res->align              = 1;
    res->initialized        = true;

    const vk::PushConstantRange constants(vk::ShaderStageFlagBits::eCompute, 0, res->push_constant_size);

    res->shader_module = device->device.createShaderModule({ {}, sizeof(MERGE), MERGE });
    res->layout        = device->device.createPipelineLayout({ {}, device->dsl, constants });

    const vk::PipelineShaderStageCreateInfo stage({}, vk::ShaderStageFlagBits::eCompute, res->shader_module, "main");

    res->pipeline = device->device.createComputePipeline(nullptr, { {}, stage, res->layout }).value;
    res->compiled = true;

    return res;
}

static vk_pipeline get_merge_pipeline(const vk_device & device) {
    // Never destroyed: the devices are when the process ends, and take their pipelines with them.
    static auto & pipelines = *new std::map<const vk_device_struct *, vk_pipeline>;
    static std::mutex mutex;

    const std::lock_guard<std::mutex> guard(mutex);

    vk_pipeline & res = pipelines[device.get()];
    if (!res) {
        res = create_merge_pipeline(device);

        const std::lock_guard<std::mutex> guard_device(device->compile_mutex);
        device->all_pipelines.push_back(res);
    }
    return res;
}

// from one of the device's maps, where ggml finds what it has to compile
template <typename K>
static vk_pipeline find_pipeline(const vk_device & device, std::map<K, vk_pipeline> & pipelines, const K & key) {
    const std::lock_guard<std::mutex> guard(device->compile_mutex);

    vk_pipeline & res = pipelines[key];
    if (!res) {
        res = std::make_shared<vk_pipeline_struct>();
    }
    return res;
}

//
// commands
//

// what the shaders of a part read and write
struct fa_buffers {
    vk_subbuffer k;
    vk_subbuffer v;
    vk_subbuffer mask;
    vk_subbuffer mask_opt;
    vk_subbuffer pieces;
};

static fa_buffers get_buffers(ggml_backend_vk_context * ctx, const llama_self_extend_vk_part & part, const ggml_tensor * node) {
    const vk_subbuffer dst  = ggml_vk_tensor_subbuffer(ctx, node);
    const vk_subbuffer mask = ggml_vk_tensor_subbuffer(ctx, part.mask);

    const auto work = [&](uint64_t offs, uint64_t size) { return vk_subbuffer { dst.buffer, dst.offset + offs, size }; };

    const uint64_t offs_mask = part.mask_begin*sizeof(ggml_fp16_t);

    fa_buffers res;
    res.k        = part.dequant ? work(part.offs_k, part.size_k()) : ggml_vk_tensor_subbuffer(ctx, part.k);
    res.v        = part.dequant ? work(part.offs_v, part.size_v()) : ggml_vk_tensor_subbuffer(ctx, part.v);
    res.mask     = { mask.buffer, mask.offset + offs_mask, mask.size - offs_mask };
    res.pieces   = work(part.offs_pieces, part.size_pieces());
    res.mask_opt = part.mask_opt ? work(part.offs_opt, part.size_opt()) : mask; // not read
    return res;
}

static void dispatch_dequant(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_tensor * t, const vk_subbuffer & dst) {
    vk_pipeline pipeline = ctx->device->pipeline_dequant_transpose[t->type];

    const uint32_t n = ggml_nelements(t);

    const std::vector<uint32_t> constants = { uint32_t(t->ne[0]), uint32_t(t->ne[1]), uint32_t(t->ne[2]), 0, n };

    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { ggml_vk_tensor_subbuffer(ctx, t), dst }, constants, { n, 1, 1 });
}

static void dispatch_mask_opt(ggml_backend_vk_context * ctx, vk_context & subctx, const llama_self_extend_vk_part & part, const fa_buffers & buf) {
    vk_pipeline pipeline = find_pipeline(ctx->device, ctx->device->pipeline_fa_mask_opt, { part.state.Br, part.state.Bc });

    const uint32_t n_kv     = part.n_kv();
    const uint32_t n_tokens = part.n_tokens();
    const uint32_t n_words  = part.n_opt_words();
    const uint32_t n_blocks = CEIL_DIV(n_tokens, part.state.Br);

    const auto stride = [&](int i) { return uint32_t(part.mask->nb[i]/sizeof(ggml_fp16_t)); };

    const vk_op_flash_attn_mask_opt_push_constants constants = {
        n_kv, n_tokens, 1,
        stride(1), stride(2), stride(3),
        n_words, n_words*n_blocks, n_words*n_blocks,
    };

    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { buf.mask, buf.mask_opt }, constants,
            { CEIL_DIV(n_kv, 16*part.state.Bc), n_blocks, uint32_t(part.n_stream()) });
}

static void dispatch_part(ggml_backend_vk_context * ctx, vk_context & subctx, const llama_self_extend_vk_part & part, const fa_buffers & buf, const llama_self_extend_attn_op & op) {
    vk_pipeline pipeline = find_pipeline(ctx->device, ctx->device->pipeline_flash_attn_f32_f16, part.state);

    const uint32_t n_tokens  = part.n_tokens();
    const uint32_t n_head    = part.n_head();
    const uint32_t n_head_kv = part.k->ne[1];
    const uint32_t n_stream  = part.n_stream();

    // of heads and streams, in bytes
    const auto strides = [&](const ggml_tensor * t) -> std::array<uint32_t, 2> {
        const uint32_t n_bytes = t->ne[0]*t->ne[2]*sizeof(ggml_fp16_t);
        if (part.dequant) {
            return { n_bytes, n_bytes*n_head_kv };
        }
        return { uint32_t(t->nb[1]), uint32_t(t->nb[3]) };
    };
    const auto nb_k = strides(part.k);
    const auto nb_v = strides(part.v);

    const vk_flash_attn_push_constants constants = {
        part.n_rows, uint32_t(part.mask->ne[0]),
        n_head, n_tokens, n_stream,
        n_head, n_stream, n_head_kv, n_stream, n_head_kv, n_stream,
        n_tokens, 1, n_stream,
        part.stride_q(), uint32_t(part.q->nb[1]), uint32_t(part.q->nb[2]*n_tokens),
        part.stride_k(), nb_k[0], nb_k[1],
        part.stride_v(), nb_v[0], nb_v[1],
        op.logit_softcap != 0.0f ? op.scale/op.logit_softcap : op.scale, 0.0f, op.logit_softcap,
        0, 1.0f, 1.0f, // neither sinks, which belong to both parts, nor ALiBi
        part.n_heads, part.n_piece_kv, part.n_piece,
    };

    const vk_subbuffer q = ggml_vk_tensor_subbuffer(ctx, part.q);

    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline, { q, buf.k, buf.v, buf.mask, q, buf.pieces, buf.mask_opt, q }, constants,
            { part.n_piece*(part.n_heads > 1 ? n_tokens : part.n_row_blocks())*pipeline->wg_denoms[0], n_head/part.n_heads, n_stream });
}

static void dispatch_merge(ggml_backend_vk_context * ctx, vk_context & subctx, const llama_self_extend_vk_part (& parts)[2], const fa_buffers (& bufs)[2], ggml_tensor * node) {
    vk_pipeline pipeline = get_merge_pipeline(ctx->device);

    const ggml_tensor * sinks = node->src[LLAMA_SELF_EXTEND_SRC_SINKS];

    const uint32_t n_embd_v = parts[0].v->ne[0];
    const uint32_t n_head   = parts[0].n_head();
    const uint32_t n_rows   = parts[0].q->ne[2];

    const merge_constants constants = { n_embd_v, n_head, n_rows, parts[0].n_piece, parts[1].n_piece, sinks != nullptr };

    vk_subbuffer dst = ggml_vk_tensor_subbuffer(ctx, node);
    dst.size = llama_self_extend_attn_n_bytes_result(node);

    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
            { bufs[0].pieces, bufs[1].pieces, sinks ? ggml_vk_tensor_subbuffer(ctx, sinks) : bufs[0].pieces, dst },
            constants, { n_rows, n_head, CEIL_DIV(n_embd_v, MERGE_N) });
}

void llama_self_extend_attn_vulkan(ggml_backend_vk_context * ctx, vk_context & subctx, ggml_tensor * node) {
    llama_self_extend_attn_op op;
    GGML_ASSERT(llama_self_extend_attn_get_op(node, op));

    llama_self_extend_vk_part parts[2];
    const int64_t n_bytes = llama_self_extend_vk_init_parts(parts, ctx->device, node);
    GGML_ASSERT(n_bytes >= 0 && uint64_t(n_bytes) <= ggml_nbytes(node));

    const fa_buffers bufs[2] = { get_buffers(ctx, parts[0], node), get_buffers(ctx, parts[1], node) };

    bool prepared = false;
    for (int i = 0; i < 2; ++i) {
        if (parts[i].dequant) {
            dispatch_dequant(ctx, subctx, parts[i].k, bufs[i].k);
            dispatch_dequant(ctx, subctx, parts[i].v, bufs[i].v);
        }
        if (parts[i].mask_opt) {
            dispatch_mask_opt(ctx, subctx, parts[i], bufs[i]);
        }
        prepared = prepared || parts[i].dequant || parts[i].mask_opt;
    }
    if (prepared) {
        ggml_vk_sync_buffers(ctx, subctx);
    }

    for (int i = 0; i < 2; ++i) {
        dispatch_part(ctx, subctx, parts[i], bufs[i], op);
    }
    ggml_vk_sync_buffers(ctx, subctx);

    dispatch_merge(ctx, subctx, parts, bufs, node);
}
