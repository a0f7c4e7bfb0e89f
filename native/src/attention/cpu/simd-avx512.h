#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// AVX-512 F, BW, DQ, VL
struct simd {
    using vec = __m512;

    static constexpr int NV     = 16;
    static constexpr int N_REGS = 32;

    static vec  zero()                   { return _mm512_setzero_ps();   }
    static vec  set1(float x)            { return _mm512_set1_ps(x);     }
    static vec  load(const float * p)    { return _mm512_loadu_ps(p);    }
    static void store(float * p, vec a)  { _mm512_storeu_ps(p, a);       }
    static vec  add(vec a, vec b)        { return _mm512_add_ps(a, b);   }
    static vec  sub(vec a, vec b)        { return _mm512_sub_ps(a, b);   }
    static vec  mul(vec a, vec b)        { return _mm512_mul_ps(a, b);   }
    static vec  div(vec a, vec b)        { return _mm512_div_ps(a, b);   }
    static vec  max(vec a, vec b)        { return _mm512_max_ps(a, b);   }
    static vec  fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); } // a*b + c
    static vec  copy_sign(vec a, vec s)  { return _mm512_or_ps(a, _mm512_and_ps(s, _mm512_set1_ps(-0.0f))); } // a >= 0

    static bool any_less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }

    static vec load_f16 (const uint16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
    static vec load_bf16(const uint16_t * p) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)), 16));
    }
    static vec load_i8(const int8_t * p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)));
    }
    // the low or the high 4 bits of NV bytes
    static vec load_u4(const uint8_t * p, bool high) {
        const __m128i x = _mm_loadu_si128((const __m128i *) p);
        const __m128i y = _mm_and_si128(high ? _mm_srli_epi16(x, 4) : x, _mm_set1_epi8(0xf));

        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(y));
    }
    static float f16_to_f32(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }

    static vec round(vec a)             { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static vec scale_exp2(vec a, vec n) { return _mm512_scalef_ps(a, n); } // a*2^n, n whole

    static float reduce_max(vec a) { return _mm512_reduce_max_ps(a); }
    static float reduce_add(vec a) { return _mm512_reduce_add_ps(a); }

    // dst[i] (+)= the sum of a[i], i < 4
    static void sum_4(const vec * a, float * dst, bool accumulate) {
        const __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
        const __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
        const __m512 z = _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee));
        const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
        __m128       s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));

        if (accumulate) {
            s = _mm_add_ps(s, _mm_loadu_ps(dst));
        }
        _mm_storeu_ps(dst, s);
    }
};

} // namespace
