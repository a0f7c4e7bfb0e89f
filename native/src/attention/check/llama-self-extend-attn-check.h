#pragma once

#include "ggml.h"
#include "ggml-backend.h"

#include <cstdint>

//
// does a device compute the fused attention as the CPU does?
//
// There are more devices and drivers than anybody has at hand, and a wrong answer looks like a poor model. So each process asks
// each device once for each shape, on a small problem, before it relies on it.
//

struct llama_self_extend_attn_shape {
    int64_t   n_embd_k;
    int64_t   n_embd_v;
    int64_t   n_head;
    int64_t   n_head_kv;
    ggml_type type_k;
    ggml_type type_v;
    float     logit_softcap; // 0: none
};

// Returns false, and logs why, if the device computes something else, or nothing. The answer is kept.
bool llama_self_extend_attn_check(ggml_backend_dev_t dev, const llama_self_extend_attn_shape & shape);
