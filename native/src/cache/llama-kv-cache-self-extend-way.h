#pragma once

#include "llama-self-extend.h"

#include "ggml-backend.h"

#include <cstdint>

struct llama_cparams;
struct llama_hparams;

class llama_kv_cache;

//
// how the attention of a layer is computed
//

enum llama_self_extend_way {
    LLAMA_SELF_EXTEND_WAY_COMPOSED, // stock operators, where the cache lies
    LLAMA_SELF_EXTEND_WAY_CPU,      // one node, on the CPU
    LLAMA_SELF_EXTEND_WAY_DEVICE,   // one node, on the device that the cache lies on
};

// The device that a layer's part of a cache lies on, nullptr for the CPU.
ggml_backend_dev_t llama_self_extend_dev_of(const llama_kv_cache & kv, int32_t il);

// The best way that there is where the cache of a layer lies, of those that attn leaves.
// A device is asked by a name that only a backend with our node offers: one that does not know the node may say yes to every node.
llama_self_extend_way llama_self_extend_find_way(
        const llama_kv_cache   & kv_far,
        const llama_kv_cache   & kv_near,
        const llama_hparams    & hparams,
        const llama_cparams    & cparams,
        llama_self_extend_attn   attn,
        int32_t                  il);
