#pragma once

// half and bfloat16: each operation in F32, then rounded, which is what one in half gives

#include "cuda_runtime.h"

#include "ggml-impl.h"

template <ggml_fp16_t (* from_float)(float), float (* to_float)(ggml_fp16_t)>
struct cuda_host_f16 {
    ggml_fp16_t bits;

    cuda_host_f16() = default;

    template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
    cuda_host_f16(T x) : bits(from_float(float(x))) {}

    operator float() const { return to_float(bits); }
};

inline ggml_fp16_t cuda_host_from_half(float x) { return GGML_FP32_TO_FP16(x); }
inline float       cuda_host_to_half(ggml_fp16_t x) { return GGML_FP16_TO_FP32(x); }
inline ggml_fp16_t cuda_host_from_bf16(float x) { return ggml_compute_fp32_to_bf16(x).bits; }
inline float       cuda_host_to_bf16(ggml_fp16_t x) { return ggml_compute_bf16_to_fp32({ x }); }

using half        = cuda_host_f16<cuda_host_from_half, cuda_host_to_half>;
using nv_bfloat16 = cuda_host_f16<cuda_host_from_bf16, cuda_host_to_bf16>;

struct alignas(4) half2 {
    half x, y;

    half2() = default;
    half2(half x, half y) : x(x), y(y) {}
};

struct alignas(4) nv_bfloat162 {
    nv_bfloat16 x, y;
};

inline half2 operator*(half2 a, half2 b) { return { half(float(a.x)*float(b.x)), half(float(a.y)*float(b.y)) }; }
inline half2 operator+(half2 a, half2 b) { return { half(float(a.x)+float(b.x)), half(float(a.y)+float(b.y)) }; }

inline half2 & operator*=(half2 & a, half2 b) { return a = a*b; }
inline half2 & operator+=(half2 & a, half2 b) { return a = a + b; }

inline half  __float2half(float x) { return x; }
inline float __half2float(half x) { return x; }
inline half  __low2half (half2 a) { return a.x; }
inline half  __high2half(half2 a) { return a.y; }
inline float __low2float (half2 a) { return a.x; }
inline float __high2float(half2 a) { return a.y; }
inline half2 make_half2(float x, float y) { return { x, y }; }
inline half2 __half2half2(half a) { return { a, a }; }
inline half2 __float22half2_rn(float2 a) { return { a.x, a.y }; }
inline half2 __hadd2(half2 a, half2 b) { return a + b; }
inline half2 __hmul2(half2 a, half2 b) { return a*b; }
inline half  __hmax(half a, half b) { return fmaxf(a, b); }
inline half2 __hmax2(half2 a, half2 b) { return { __hmax(a.x, b.x), __hmax(a.y, b.y) }; }

inline float2 __half22float2(half2 a) { return { a.x, a.y }; }

inline nv_bfloat16 __float2bfloat16(float x) { return x; }
inline float       __bfloat162float(nv_bfloat16 x) { return x; }
inline float2      __bfloat1622float2(nv_bfloat162 a) { return { a.x, a.y }; }
