#include "attention/vulkan/parts.h"

#include "attention/llama-self-extend-attn.h"

#include <algorithm>

static bool is_quantized(ggml_type type) {
    return type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_BF16;
}

// Number of pieces of equal length, all of whole blocks: about as many as are wanted, and at least two. 0 if there are none.
static uint32_t get_n_piece(uint32_t n_blocks, uint32_t n_wanted) {
    n_wanted = std::max(2u, n_wanted);

    uint32_t res = 0;
    for (uint32_t n = 2; n <= n_blocks; ++n) {
        if (n_blocks % n != 0) {
            continue;
        }
        // more than twice as many would be far too many, where the number of blocks has a large prime factor
        if (n <= 2*n_wanted || res == 0) {
            res = n;
        }
        if (n >= n_wanted) {
            break;
        }
    }

    return res;
}

// can the shader step through it? strides are handed over in elements, blocks or four F32, and rows are read four at a time
static bool has_good_strides(const ggml_tensor * t, size_t alignment) {
    const size_t unit = t->type == GGML_TYPE_F32 ? 4*sizeof(float) : t->type == GGML_TYPE_F16 || t->type == GGML_TYPE_BF16 ?
        4*sizeof(ggml_fp16_t) : ggml_type_size(t->type);

    return t->nb[0] == ggml_type_size(t->type) && t->nb[1] % unit == 0 && t->nb[2] % unit == 0 && t->nb[3] % unit == 0 &&
        t->view_offs % alignment == 0;
}

static bool is_dense(const ggml_tensor * t) {
    return t->nb[1] == ggml_row_size(t->type, t->ne[0]) && t->nb[2] == t->nb[1]*t->ne[1] &&
        (t->ne[3] == 1 || t->nb[3] == t->nb[2]*t->ne[2]);
}

// as ggml_vk_flash_attn() chooses, or false if the shaders cannot compute it
static bool init_part(llama_self_extend_vk_part & part, const vk_device & device, const ggml_tensor * node, bool is_near) {
    const auto & limits = device->properties.limits;

    const ggml_tensor * const * src = node->src + (is_near ? LLAMA_SELF_EXTEND_SRC_Q_NEAR : LLAMA_SELF_EXTEND_SRC_Q_FAR);

    const ggml_tensor * q    = src[0];
    const ggml_tensor * k    = src[1];
    const ggml_tensor * v    = src[2];
    const ggml_tensor * mask = node->src[LLAMA_SELF_EXTEND_SRC_MASK];

    part = {};

    part.q          = q;
    part.k          = k;
    part.v          = v;
    part.mask       = mask;
    part.mask_begin = is_near ? mask->ne[0] - k->ne[2] : 0;
    part.type_k     = k->type;
    part.type_v     = v->type;
    part.n_heads    = 1;

    if (k->ne[0] % 8 != 0 || v->ne[0] % 8 != 0 || q->ne[1] % k->ne[1] != 0 || k->ne[1] != v->ne[1] || k->ne[2] != v->ne[2] ||
            v->nb[1] > v->nb[2] || q->ne[2] % k->ne[3] != 0 || mask->ne[1] != q->ne[2]/k->ne[3]) {
        return false;
    }
    for (const auto * t : { q, k, v }) {
        if (!has_good_strides(t, limits.minStorageBufferOffsetAlignment)) {
            return false;
        }
    }

    const uint32_t n_embd_k = k->ne[0];
    const uint32_t n_embd_v = v->ne[0];
    const uint32_t n_gqa    = q->ne[1]/k->ne[1];
    const uint32_t n_kv     = part.n_kv();

    const auto fits = [&](uint64_t size) { return size <= limits.maxStorageBufferRange; };

    part.dequant = is_quantized(k->type) && is_quantized(v->type) && part.n_tokens() >= 64 && is_dense(k) && is_dense(v) &&
        fits(ggml_nelements(k)*sizeof(ggml_fp16_t)) && fits(ggml_nelements(v)*sizeof(ggml_fp16_t)) &&
        device->pipeline_dequant_transpose[k->type] && device->pipeline_dequant_transpose[v->type] && !device->coopmat2 &&
        (device->vendor_id != VK_VENDOR_ID_INTEL || (device->coopmat_support && device->architecture != vk_device_architecture::INTEL_XE1));
    if (part.dequant) {
        part.type_k = GGML_TYPE_F16;
        part.type_v = GGML_TYPE_F16;
    }

    // scores are summed in F32, as llama.cpp asks of its own flash attention
    const auto tune = [&](uint32_t n_rows) {
        return get_fa_tuning_params(device, n_embd_k, n_embd_v, n_rows, n_kv, part.type_k, part.type_v, true);
    };

    part.n_rows = part.n_tokens();
    if (part.n_rows <= 8 && n_gqa > 1 && n_gqa <= std::min(tune(512).block_rows, 32u) && n_gqa <= tune(n_gqa).block_rows) {
        part.n_rows  = n_gqa;
        part.n_heads = n_gqa;
    }

    const vk_fa_tuning_params params = tune(part.n_rows);

    const bool aligned = (part.stride_q() | part.stride_k() | part.stride_v()) % 8 == 0 &&
        !((n_embd_k | n_embd_v) % 16 != 0 && params.path == FA_COOPMAT2);

    part.mask_opt = part.n_tokens() >= 32 && n_kv*part.n_tokens() > 32768 && n_kv >= 16*params.block_cols &&
        (device->architecture != vk_device_architecture::AMD_GCN || n_embd_k > 256 || n_embd_v > 256);

    llama_self_extend_attn_op op;
    llama_self_extend_attn_get_op(node, op);

    part.state = get_fa_pipeline_state(device, params, n_embd_k, n_embd_v, aligned, true, true, part.mask_opt,
            op.logit_softcap != 0.0f, false, part.type_k, part.type_v);

    // enough workgroups for all cores, where there are too few rows for that
    const uint32_t n_cores = device->shader_core_count == 0 ? 16 :
        device->shader_core_count*(device->vendor_id == VK_VENDOR_ID_INTEL && device->architecture != INTEL_XE2 ? 2 : 1);
    const uint64_t n_workgroups = (part.n_heads > 1 ? part.n_tokens() : part.n_row_blocks())*(part.n_head()/part.n_heads)*part.n_stream();

    const uint32_t n_blocks = n_kv/params.block_cols;

    part.n_piece = n_kv % params.block_cols == 0 ? get_n_piece(n_blocks, 2*n_cores/n_workgroups) : 0;
    if (part.n_piece == 0) {
        return false;
    }
    part.n_piece_kv = n_kv/part.n_piece;

    return fits(part.size_pieces()) && part.n_piece*std::max<uint64_t>(part.n_tokens(), part.n_row_blocks()) <= limits.maxComputeWorkGroupCount[0];
}

int64_t llama_self_extend_vk_init_parts(llama_self_extend_vk_part (& parts)[2], const vk_device & device, const ggml_tensor * node) {
    if (!init_part(parts[0], device, node, false) || !init_part(parts[1], device, node, true)) {
        return -1;
    }

    uint64_t end = llama_self_extend_attn_n_bytes_result(node);

    // 256 is the most that Vulkan lets a device ask for
    const auto take = [&](uint64_t size) {
        const uint64_t offs = GGML_PAD(end, 256);
        end = offs + size;
        return offs;
    };
    for (auto & part : parts) {
        part.offs_k      = take(part.size_k());
        part.offs_v      = take(part.size_v());
        part.offs_opt    = take(part.size_opt());
        part.offs_pieces = take(part.size_pieces());
    }
    return end <= std::min<uint64_t>(device->properties.limits.maxStorageBufferRange, device->max_buffer_size) ? int64_t(end) : -1;
}
