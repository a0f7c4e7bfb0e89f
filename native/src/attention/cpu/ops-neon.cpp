#include "attention/cpu/ops.h"

#if defined(__aarch64__)

#include "attention/cpu/simd-neon.h"

#include "attention/cpu/ops-impl.h"

const llama_self_extend_ops * llama_self_extend_ops_neon() {
    static constexpr llama_self_extend_ops ops = make_ops("neon");

    return &ops;
}

#else

const llama_self_extend_ops * llama_self_extend_ops_neon() {
    return nullptr;
}

#endif
