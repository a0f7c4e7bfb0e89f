#include "attention/cpu/ops.h"

#if defined(__AVX2__) && (defined(_MSC_VER) || (defined(__FMA__) && defined(__F16C__)))

#include "attention/cpu/simd-avx2.h"

#include "attention/cpu/ops-impl.h"

const llama_self_extend_ops * llama_self_extend_ops_avx2() {
    static constexpr llama_self_extend_ops ops = make_ops("avx2");

    return &ops;
}

#else

const llama_self_extend_ops * llama_self_extend_ops_avx2() {
    return nullptr;
}

#endif
