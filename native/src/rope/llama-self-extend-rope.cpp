#include "rope/llama-self-extend-rope.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <vector>

// a node like cur on another source, of its shape
static ggml_tensor * dup_node(ggml_context * ctx, const ggml_tensor * cur, ggml_tensor * src0) {
    ggml_tensor * res = ggml_dup_tensor(ctx, src0);

    res->op = cur->op;
    std::copy(std::begin(cur->op_params), std::end(cur->op_params), res->op_params);
    std::copy(std::begin(cur->src),       std::end(cur->src),       res->src);

    res->src[0] = src0;

    return res;
}

// places in the op_params of GGML_OP_ROPE
enum {
    ROPE_N_DIMS      = 1,
    ROPE_FREQ_BASE   = 5,
    ROPE_FREQ_SCALE  = 6,
    ROPE_EXT_FACTOR  = 7,
    ROPE_ATTN_FACTOR = 8,
};

static float get_f32(const int32_t * op_params, int i) {
    float res;
    memcpy(&res, op_params + i, sizeof(res));
    return res;
}

static void set_f32(int32_t * op_params, int i, float value) {
    memcpy(op_params + i, &value, sizeof(value));
}

int64_t llama_self_extend_rope_n_rot(const int32_t * op_params) {
    return op_params[ROPE_N_DIMS];
}

float llama_self_extend_rope_freq_base(const int32_t * op_params) {
    return get_f32(op_params, ROPE_FREQ_BASE);
}

ggml_tensor * llama_self_extend_rope_at(
        ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos, llama_self_extend_freqs & freqs, int64_t n_frames) {
    if (cur->view_src) {
        return nullptr; // computed in place: the input is gone
    }

    switch (cur->op) {
        case GGML_OP_ROPE:
            {
                ggml_tensor * src0 = cur->src[0];

                if (n_frames > 1) {
                    GGML_ASSERT(src0->ne[2] == 1);
                    src0 = ggml_view_3d(ctx, src0, src0->ne[0], src0->ne[1], 1, src0->nb[1], src0->nb[2], 0);

                    // the one token again and again
                    src0->ne[2] = n_frames;
                    src0->nb[2] = 0;
                }

                ggml_tensor * res = dup_node(ctx, cur, src0);
                res->src[1] = pos;
                res->src[2] = freqs.build(ctx, res->op_params, res->src[2]);
                set_f32(res->op_params, ROPE_ATTN_FACTOR, get_f32(res->op_params, ROPE_ATTN_FACTOR)*freqs.get_magnitude());
                return res;
            }
        // what models do to Q and K after RoPE
        case GGML_OP_SCALE:
        case GGML_OP_MUL:
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
            {
                ggml_tensor * src0 = llama_self_extend_rope_at(ctx, cur->src[0], pos, freqs, n_frames);
                return src0 ? dup_node(ctx, cur, src0) : nullptr;
            }
        default:
            return nullptr;
    }
}

bool llama_self_extend_rope_none(const ggml_tensor * cur) {
    while (cur) {
        switch (cur->op) {
            case GGML_OP_MUL_MAT:
                return cur->src[0]->op == GGML_OP_NONE; // a weight: this is the projection
            case GGML_OP_ADD:
            case GGML_OP_CONT:
            case GGML_OP_MUL:
            case GGML_OP_NORM:
            case GGML_OP_PERMUTE:
            case GGML_OP_RESHAPE:
            case GGML_OP_RMS_NORM:
            case GGML_OP_SCALE:
            case GGML_OP_VIEW:
                cur = cur->src[0];
                break;
            default:
                return false;
        }
    }

    return false;
}

bool llama_self_extend_rope_find(const ggml_tensor * cur, llama_self_extend_rope & rope) {
    rope = {};

    if (llama_self_extend_rope_none(cur)) {
        rope.none      = true;
        rope.magnitude = 1.0f;
        return true;
    }

    // a rotation changes neither a factor nor the length of a vector
    while (cur && (cur->op == GGML_OP_SCALE || cur->op == GGML_OP_RMS_NORM)) {
        cur = cur->src[0];
    }

    if (!cur || cur->op != GGML_OP_ROPE) {
        return false;
    }

    std::copy(std::begin(cur->op_params), std::end(cur->op_params), rope.op_params);
    rope.factors = cur->src[2];

    // ref: rope_yarn() of ggml
    const float yarn = get_f32(rope.op_params, ROPE_EXT_FACTOR) != 0.0f ?
        1.0f + 0.1f*std::log(1.0f/get_f32(rope.op_params, ROPE_FREQ_SCALE)) : 1.0f;

    rope.magnitude = get_f32(rope.op_params, ROPE_ATTN_FACTOR)*yarn;

    // the key that is turned further has the magnitude already
    set_f32(rope.op_params, ROPE_ATTN_FACTOR, 1.0f/yarn);

    return true;
}

ggml_tensor * llama_self_extend_rope_turn(
        ggml_context * ctx, ggml_tensor * k, ggml_tensor * delta, llama_self_extend_freqs & freqs, const llama_self_extend_rope & rope) {
    GGML_ASSERT(k->type == GGML_TYPE_F32 && ggml_is_contiguous(k));

    if (rope.none) {
        return k;
    }

    ggml_tensor * res = ggml_dup_tensor(ctx, k);

    res->op     = GGML_OP_ROPE;
    res->src[0] = k;
    res->src[1] = delta;
    res->src[2] = freqs.build(ctx, rope.op_params, rope.factors);
    std::copy(std::begin(rope.op_params), std::end(rope.op_params), res->op_params);

    return res;
}

void llama_self_extend_rope_set_pos(ggml_tensor * dst, const int32_t * pos, int64_t n_tokens) {
    const int64_t n_pos = dst->ne[0]/n_tokens;

    std::vector<int32_t> data(dst->ne[0], 0);
    for (int64_t d = 0; d < std::min<int64_t>(n_pos, 3); ++d) {
        std::copy(pos, pos + n_tokens, data.begin() + d*n_tokens);
    }

    ggml_backend_tensor_set(dst, data.data(), 0, ggml_nbytes(dst));
}
