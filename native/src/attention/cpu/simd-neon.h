#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

// AArch64
struct simd {
    using vec = float32x4_t;

    static constexpr int NV     = 4;
    static constexpr int N_REGS = 32;

    static vec  zero()                   { return vdupq_n_f32(0.0f);     }
    static vec  set1(float x)            { return vdupq_n_f32(x);        }
    static vec  load(const float * p)    { return vld1q_f32(p);          }
    static void store(float * p, vec a)  { vst1q_f32(p, a);              }
    static vec  add(vec a, vec b)        { return vaddq_f32(a, b);       }
    static vec  sub(vec a, vec b)        { return vsubq_f32(a, b);       }
    static vec  mul(vec a, vec b)        { return vmulq_f32(a, b);       }
    static vec  div(vec a, vec b)        { return vdivq_f32(a, b);       }
    static vec  max(vec a, vec b)        { return vmaxq_f32(a, b);       } // NaN if either is
    static vec  fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b);    } // a*b + c
    static vec  copy_sign(vec a, vec s)  { return vbslq_f32(vdupq_n_u32(0x80000000), s, a); }

    static bool any_less(vec a, vec b) { return vmaxvq_u32(vcltq_f32(a, b)) != 0; }

    static vec load_f16 (const uint16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));     }
    static vec load_bf16(const uint16_t * p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static vec load_i8(const int8_t * p) {
        int32_t x;
        memcpy(&x, p, sizeof(x));

        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(x))))));
    }
    // the low or the high 4 bits of NV bytes
    static vec load_u4(const uint8_t * p, bool high) {
        uint32_t x;
        memcpy(&x, p, sizeof(x));
        x = (high ? x >> 4 : x) & 0x0f0f0f0f;

        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(x))))));
    }
    static float f16_to_f32(uint16_t x) {
        __fp16 h;
        memcpy(&h, &x, sizeof(h));

        return h;
    }

    static vec round(vec a) { return vrndnq_f32(a); }

    // a*2^n, n whole; 0 if 2^n is not a normal number
    static vec scale_exp2(vec a, vec n) {
        const int32x4_t  e    = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
        const uint32x4_t keep = vmvnq_u32(vcleq_f32(n, vdupq_n_f32(-126.5f)));

        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(vmulq_f32(a, vreinterpretq_f32_s32(e))), keep));
    }

    static float reduce_max(vec a) { return vmaxvq_f32(a); }
    static float reduce_add(vec a) { return vaddvq_f32(a); }

    // dst[i] (+)= the sum of a[i], i < 4
    static void sum_4(const vec * a, float * dst, bool accumulate) {
        const vec s = vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));

        vst1q_f32(dst, accumulate ? vaddq_f32(s, vld1q_f32(dst)) : s);
    }
};

} // namespace
