#pragma once

#include "ggml-vulkan-common.h"

#include <cstdint>

//
// how each part of the node is computed: which of ggml's shaders, in how many pieces, with which work space
//

struct llama_self_extend_vk_part {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;

    uint32_t mask_begin; // the column of its first cell

    // quantized K and V are made F16 first where ggml does so: [n_embd, n_kv, n_head_kv, n_stream]
    bool      dequant;
    ggml_type type_k; // as the shader reads them
    ggml_type type_v;

    // the rows that share K and V in a workgroup are tokens, or the heads of one token
    uint32_t n_rows;
    uint32_t n_heads; // 1 if they are tokens

    vk_fa_pipeline_state state;

    bool mask_opt; // are blocks classified first by what their mask lets through?

    uint32_t n_piece;
    uint32_t n_piece_kv; // cells

    // the work space, in bytes from the beginning of the node
    uint64_t offs_k;
    uint64_t offs_v;
    uint64_t offs_opt;
    uint64_t offs_pieces;

    uint64_t n_kv    () const { return k->ne[2]; }
    uint64_t n_stream() const { return k->ne[3]; }
    uint64_t n_tokens() const { return q->ne[2]/k->ne[3]; } // of a stream
    uint64_t n_head  () const { return q->ne[1]; }

    // of cells, as the shader counts them: in numbers, in blocks if they are quantized, four F32 of K and V are one
    static uint32_t stride(const ggml_tensor * t) {
        return t->nb[2]/(t->type == GGML_TYPE_F32 ? 4*sizeof(float) : ggml_type_size(t->type));
    }
    uint32_t stride_q() const { return q->nb[2]/sizeof(float); }
    uint32_t stride_k() const { return dequant ? uint32_t(k->ne[0]) : stride(k); }
    uint32_t stride_v() const { return dequant ? uint32_t(v->ne[0]) : stride(v); }

    uint32_t n_row_blocks() const { return CEIL_DIV(n_rows, state.Br); }

    // words of 16 blocks, of a row of them: the shader takes all of the mask for its part
    uint32_t n_opt_words() const { return CEIL_DIV(mask->ne[0], 16*state.Bc); }

    // bytes
    uint64_t size_k     () const { return dequant ? ggml_nelements(k)*sizeof(ggml_fp16_t) : 0; }
    uint64_t size_v     () const { return dequant ? ggml_nelements(v)*sizeof(ggml_fp16_t) : 0; }
    uint64_t size_opt   () const { return mask_opt ? n_opt_words()*CEIL_DIV(n_tokens(), state.Br)*n_stream()*sizeof(uint32_t) : 0; }
    uint64_t size_pieces() const { return n_piece*n_head()*q->ne[2]*(v->ne[0] + 2)*sizeof(float); }
};

// Both parts and their work space, as ggml_vk_flash_attn() chooses for its own.
// Returns the bytes of the node, -1 if the shaders cannot compute it.
int64_t llama_self_extend_vk_init_parts(llama_self_extend_vk_part (& parts)[2], const vk_device & device, const ggml_tensor * node);
