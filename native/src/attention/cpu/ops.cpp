#include "attention/cpu/ops.h"

#if defined(_MSC_VER)
#include <intrin.h>
#elif defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

//
// what the machine has, asked of the processor and, for the registers, of the operating system
//

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))

// bits of cpuid leaf 1 and 7, and of the state that is saved
static bool has(unsigned ecx1, unsigned ebx7, unsigned state) {
    int leaf1[4];
    int leaf7[4];
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, 7, 0);

    const unsigned osxsave = 1u << 27;

    return (leaf1[2] & (ecx1 | osxsave)) == (ecx1 | osxsave) && (leaf7[1] & ebx7) == ebx7 && (_xgetbv(0) & state) == state;
}

static bool has_avx2()   { return has(1u << 12 | 1u << 28 | 1u << 29, 1u << 5, 0x06); }
static bool has_avx512() { return has_avx2() && has(0, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, 0xe6); }

#elif defined(__x86_64__) || defined(__i386__)

// Clang before 18 does not know "f16c"
static bool has_f16c() {
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;

    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && has_avx2();
}

#else

static bool has_avx2()   { return false; }
static bool has_avx512() { return false; }

#endif

namespace {

struct ops_list {
    const llama_self_extend_ops * ops[5] = { nullptr };

    ops_list() {
        int n = 0;
        const auto add = [&](const llama_self_extend_ops * cur) {
            if (cur) {
                ops[n++] = cur;
            }
        };

        add(has_avx512() ? llama_self_extend_ops_avx512() : nullptr);
        add(has_avx2()   ? llama_self_extend_ops_avx2()   : nullptr);
        add(llama_self_extend_ops_neon());
        add(llama_self_extend_ops_portable());
    }
};

} // namespace

const llama_self_extend_ops * const * llama_self_extend_ops_list() {
    static const ops_list list;

    return list.ops;
}
