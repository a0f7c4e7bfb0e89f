#include "ops.h"

#if defined(__aarch64__)

#include "simd-neon.h"

#include "ops-impl.h"

const llama_self_extend_ops * llama_self_extend_ops_neon() {
    static constexpr llama_self_extend_ops ops = make_ops("neon");

    return &ops;
}

#else

const llama_self_extend_ops * llama_self_extend_ops_neon() {
    return nullptr;
}

#endif
