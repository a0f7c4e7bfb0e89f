#pragma once

#include "vec.h"

#include <cstdint>

//
// C[M x N] (+)= A[M x K] * B[K x N] for the small matrices of the attention kernel
//
// B and C are row-major, A has any strides: its elements are broadcast one at a time, so a transposed A costs nothing.
// N has to be a multiple of SELF_EXTEND_GEMM_NV.
//

// TODO: sizeless vector types
#if defined(GGML_SIMD) && !defined(__ARM_FEATURE_SVE) && !defined(__riscv_v_intrinsic)

static constexpr int SELF_EXTEND_GEMM_NV = GGML_F32_EPR;

// accumulators: RM*RN of 32 registers, or of 16
#if defined(__AVX512F__) || defined(__ARM_NEON)
static constexpr int SELF_EXTEND_GEMM_RM = 8;
#else
static constexpr int SELF_EXTEND_GEMM_RM = 4;
#endif
static constexpr int SELF_EXTEND_GEMM_RN = 3;

template <int RM, int RN>
static inline void self_extend_gemm_block(
        float * C, const float * A, int64_t am, int64_t ak, const float * B, int64_t K, int64_t N, bool accumulate) {
    constexpr int NV = SELF_EXTEND_GEMM_NV;

    GGML_F32_VEC acc[RM][RN];
    for (int i = 0; i < RM; ++i) {
        for (int j = 0; j < RN; ++j) {
            acc[i][j] = accumulate ? GGML_F32_VEC_LOAD(C + i*N + j*NV) : GGML_F32_VEC_ZERO;
        }
    }

    for (int64_t k = 0; k < K; ++k) {
        GGML_F32_VEC b[RN];
        for (int j = 0; j < RN; ++j) {
            b[j] = GGML_F32_VEC_LOAD(B + k*N + j*NV);
        }
        for (int i = 0; i < RM; ++i) {
            const GGML_F32_VEC a = GGML_F32_VEC_SET1(A[i*am + k*ak]);
            for (int j = 0; j < RN; ++j) {
                acc[i][j] = GGML_F32_VEC_FMA(acc[i][j], b[j], a);
            }
        }
    }

    for (int i = 0; i < RM; ++i) {
        for (int j = 0; j < RN; ++j) {
            GGML_F32_VEC_STORE(C + i*N + j*NV, acc[i][j]);
        }
    }
}

template <int RN, int RM = SELF_EXTEND_GEMM_RM>
static inline void self_extend_gemm_columns(
        float * C, const float * A, int64_t am, int64_t ak, const float * B, int64_t M, int64_t K, int64_t N, bool accumulate) {
    int64_t i = 0;
    for (; i + RM <= M; i += RM) {
        self_extend_gemm_block<RM, RN>(C + i*N, A + i*am, am, ak, B, K, N, accumulate);
    }
    if constexpr (RM > 1) {
        self_extend_gemm_columns<RN, RM/2>(C + i*N, A + i*am, am, ak, B, M - i, K, N, accumulate);
    }
}

static inline void self_extend_gemm(
        float * C, const float * A, int64_t am, int64_t ak, const float * B, int64_t M, int64_t K, int64_t N, bool accumulate) {
    constexpr int NV = SELF_EXTEND_GEMM_NV;
    constexpr int RN = SELF_EXTEND_GEMM_RN;

    // columns outside: a panel of B stays in the first-level cache while A streams through
    int64_t j = 0;
    for (; j + RN*NV <= N; j += RN*NV) {
        self_extend_gemm_columns<RN>(C + j, A, am, ak, B + j, M, K, N, accumulate);
    }
    for (; j + 2*NV <= N; j += 2*NV) {
        self_extend_gemm_columns<2>(C + j, A, am, ak, B + j, M, K, N, accumulate);
    }
    for (; j < N; j += NV) {
        self_extend_gemm_columns<1>(C + j, A, am, ak, B + j, M, K, N, accumulate);
    }
}

// the dot product of two rows, n a multiple of SELF_EXTEND_GEMM_NV
static inline float self_extend_dot(const float * a, const float * b, int64_t n) {
    constexpr int NV = SELF_EXTEND_GEMM_NV;

    GGML_F32_VEC sum[GGML_F32_ARR];
    for (int i = 0; i < GGML_F32_ARR; ++i) {
        sum[i] = GGML_F32_VEC_ZERO;
    }

    int64_t i = 0;
    for (; i + GGML_F32_STEP <= n; i += GGML_F32_STEP) {
        for (int j = 0; j < GGML_F32_ARR; ++j) {
            sum[j] = GGML_F32_VEC_FMA(sum[j], GGML_F32_VEC_LOAD(a + i + j*NV), GGML_F32_VEC_LOAD(b + i + j*NV));
        }
    }
    for (; i < n; i += NV) {
        sum[0] = GGML_F32_VEC_FMA(sum[0], GGML_F32_VEC_LOAD(a + i), GGML_F32_VEC_LOAD(b + i));
    }

    ggml_float res;
    GGML_F32_VEC_REDUCE(res, sum);

    return res;
}

#else

static constexpr int SELF_EXTEND_GEMM_NV = 8;

static inline void self_extend_gemm(
        float * C, const float * A, int64_t am, int64_t ak, const float * B, int64_t M, int64_t K, int64_t N, bool accumulate) {
    for (int64_t i = 0; i < M; ++i) {
        for (int64_t j = 0; !accumulate && j < N; ++j) {
            C[i*N + j] = 0.0f;
        }
        for (int64_t k = 0; k < K; ++k) {
            const float a = A[i*am + k*ak];
            for (int64_t j = 0; j < N; ++j) {
                C[i*N + j] += a*B[k*N + j];
            }
        }
    }
}

static inline float self_extend_dot(const float * a, const float * b, int64_t n) {
    float res = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        res += a[i]*b[i];
    }
    return res;
}

#endif
