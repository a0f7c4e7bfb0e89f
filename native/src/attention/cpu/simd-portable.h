#pragma once

#include "ggml.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// loops that compilers turn into what vectors they have
struct simd {
    static constexpr int NV     = 8;
    static constexpr int N_REGS = 16;

    struct vec {
        float x[NV];
    };

    static float fma(float a, float b, float c) {
#if defined(FP_FAST_FMAF)
        return fmaf(a, b, c);
#else
        return a*b + c;
#endif
    }

    template <typename F> static inline vec map(const F & f) {
        vec res;
        for (int i = 0; i < NV; ++i) {
            res.x[i] = f(i);
        }
        return res;
    }

    static vec  zero()                   { return map([ ](int  ) { return 0.0f;                             }); }
    static vec  set1(float x)            { return map([=](int  ) { return x;                                }); }
    static vec  load(const float * p)    { return map([=](int i) { return p[i];                             }); }
    static vec  add(vec a, vec b)        { return map([&](int i) { return a.x[i] + b.x[i];                  }); }
    static vec  sub(vec a, vec b)        { return map([&](int i) { return a.x[i] - b.x[i];                  }); }
    static vec  mul(vec a, vec b)        { return map([&](int i) { return a.x[i]*b.x[i];                    }); }
    static vec  div(vec a, vec b)        { return map([&](int i) { return a.x[i]/b.x[i];                    }); }
    static vec  max(vec a, vec b)        { return map([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; }); }
    static vec  fma(vec a, vec b, vec c) { return map([&](int i) { return fma(a.x[i], b.x[i], c.x[i]);      }); }
    static vec  copy_sign(vec a, vec s)  { return map([&](int i) { return s.x[i] < 0.0f ? -a.x[i] : a.x[i]; }); }
    static void store(float * p, vec a)  { memcpy(p, a.x, sizeof(a.x)); }

    static bool any_less(vec a, vec b) {
        bool res = false;
        for (int i = 0; i < NV; ++i) {
            res |= a.x[i] < b.x[i];
        }
        return res;
    }

    static float f16_to_f32(uint16_t x) { return ggml_fp16_to_fp32(x); }

    static vec load_f16(const uint16_t * p) {
        vec res;
        ggml_fp16_to_fp32_row(p, res.x, NV);
        return res;
    }
    static vec load_bf16(const uint16_t * p) {
        vec res;
        for (int i = 0; i < NV; ++i) {
            const uint32_t bits = uint32_t(p[i]) << 16;
            memcpy(&res.x[i], &bits, sizeof(bits));
        }
        return res;
    }
    static vec load_i8(const int8_t * p) { return map([=](int i) { return float(p[i]); }); }
    // the low or the high 4 bits of NV bytes
    static vec load_u4(const uint8_t * p, bool high) { return map([=](int i) { return float(high ? p[i] >> 4 : p[i] & 0xf); }); }

    // |x| < 2^22: adding 1.5*2^23 rounds to an integer
    static vec round(vec a) { return map([&](int i) { return (a.x[i] + 12582912.0f) - 12582912.0f; }); }

    // a*2^n, n whole; 0 if 2^n is not a normal number
    static vec scale_exp2(vec a, vec n) {
        return map([&](int i) {
            const float   e    = n.x[i] > -127.0f ? n.x[i] : -127.0f; // NaN has no integer
            const int32_t bits = (int32_t(e) + 127)*(1 << 23);
            float scale;
            memcpy(&scale, &bits, sizeof(scale));
            return n.x[i] <= -126.5f ? 0.0f : a.x[i]*scale;
        });
    }

    static float reduce_max(vec a) {
        float res = a.x[0];
        for (int i = 1; i < NV; ++i) {
            res = a.x[i] > res ? a.x[i] : res;
        }
        return res;
    }
    static float reduce_add(vec a) {
        float res = 0.0f;
        for (int i = 0; i < NV; ++i) {
            res += a.x[i];
        }
        return res;
    }

    // dst[i] (+)= the sum of a[i], i < 4
    static void sum_4(const vec * a, float * dst, bool accumulate) {
        for (int i = 0; i < 4; ++i) {
            dst[i] = (accumulate ? dst[i] : 0.0f) + reduce_add(a[i]);
        }
    }
};

} // namespace
