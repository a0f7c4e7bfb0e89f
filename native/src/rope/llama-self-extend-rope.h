#pragma once

#include "rope/llama-self-extend-freqs.h"

#include "ggml.h"

#include <cstdint>

//
// RoPE, as the graph of a model applies it
//

// The RoPE of the keys of a layer: enough to turn a cached key further.
struct llama_self_extend_rope {
    bool none; // the layer does not use RoPE: its keys are the same at all positions

    int32_t       op_params[GGML_MAX_OP_PARAMS/sizeof(int32_t)]; // of the node, with the magnitude taken out
    ggml_tensor * factors; // frequency factors or nullptr

    float magnitude; // by which the node scales what it turns (YaRN)
};

// The same tensor as cur with other positions in its RoPE, nullptr if that cannot be done.
// RoPE is applied once to the projection, with the model's own parameters, whatever those are. Rotating a rotated key
// once more would round twice, and be wrong where a norm with weights follows RoPE.
// freqs: the frequencies that it is turned by
// n_frames: cur of a single token at so many positions, [n_embd_head, n_head, n_frames]; 1 for cur of any number of tokens
ggml_tensor * llama_self_extend_rope_at(
        ggml_context * ctx, ggml_tensor * cur, ggml_tensor * pos, llama_self_extend_freqs & freqs, int64_t n_frames);

// Is cur made of a projection without RoPE? false if it cannot be told.
bool llama_self_extend_rope_none(const ggml_tensor * cur);

// The RoPE that made cur. Returns false if it cannot be told, or if what the model does after it does not commute with a rotation.
bool llama_self_extend_rope_find(const ggml_tensor * cur, llama_self_extend_rope & rope);

// Turn k [n_embd_head, n_head_kv, n_tokens], F32, further by delta positions of these frequencies, I32 [n_tokens] (4 times as many
// with M-RoPE).
ggml_tensor * llama_self_extend_rope_turn(
        ggml_context * ctx, ggml_tensor * k, ggml_tensor * delta, llama_self_extend_freqs & freqs, const llama_self_extend_rope & rope);

// what the parameters of a RoPE node say
int64_t llama_self_extend_rope_n_rot    (const int32_t * op_params);
float   llama_self_extend_rope_freq_base(const int32_t * op_params);

// Fill in positions for RoPE, [n_tokens] or [n_tokens*4], as llama.cpp does for text: the last of M-RoPE's four stays 0.
void llama_self_extend_rope_set_pos(ggml_tensor * dst, const int32_t * pos, int64_t n_tokens);
