#include "attention/cpu/ops.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "attention/cpu/simd-avx512.h"

#include "attention/cpu/ops-impl.h"

const llama_self_extend_ops * llama_self_extend_ops_avx512() {
    static constexpr llama_self_extend_ops ops = make_ops("avx512");

    return &ops;
}

#else

const llama_self_extend_ops * llama_self_extend_ops_avx512() {
    return nullptr;
}

#endif
