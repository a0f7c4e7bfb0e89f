#include "attention/cpu/simd-portable.h"

#include "attention/cpu/ops-impl.h"

const llama_self_extend_ops * llama_self_extend_ops_portable() {
    static constexpr llama_self_extend_ops ops = make_ops("portable");

    return &ops;
}
