#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// AVX2, FMA, F16C
struct simd {
    using vec = __m256;

    static constexpr int NV     = 8;
    static constexpr int N_REGS = 16;

    static vec  zero()                   { return _mm256_setzero_ps();   }
    static vec  set1(float x)            { return _mm256_set1_ps(x);     }
    static vec  load(const float * p)    { return _mm256_loadu_ps(p);    }
    static void store(float * p, vec a)  { _mm256_storeu_ps(p, a);       }
    static vec  add(vec a, vec b)        { return _mm256_add_ps(a, b);   }
    static vec  sub(vec a, vec b)        { return _mm256_sub_ps(a, b);   }
    static vec  mul(vec a, vec b)        { return _mm256_mul_ps(a, b);   }
    static vec  div(vec a, vec b)        { return _mm256_div_ps(a, b);   }
    static vec  max(vec a, vec b)        { return _mm256_max_ps(a, b);   }
    static vec  fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); } // a*b + c
    static vec  copy_sign(vec a, vec s)  { return _mm256_or_ps(a, _mm256_and_ps(s, _mm256_set1_ps(-0.0f))); } // a >= 0

    static bool any_less(vec a, vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0; }

    static vec load_f16 (const uint16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
    static vec load_bf16(const uint16_t * p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)), 16));
    }
    static vec load_i8(const int8_t * p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)));
    }
    // the low or the high 4 bits of NV bytes
    static vec load_u4(const uint8_t * p, bool high) {
        const __m128i x = _mm_loadl_epi64((const __m128i *) p);
        const __m128i y = _mm_and_si128(high ? _mm_srli_epi16(x, 4) : x, _mm_set1_epi8(0xf));

        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(y));
    }
    static float f16_to_f32(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }

    static vec round(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

    // a*2^n, n whole; 0 if 2^n is not a normal number
    static vec scale_exp2(vec a, vec n) {
        const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);

        return _mm256_and_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(e)), _mm256_cmp_ps(n, _mm256_set1_ps(-126.5f), _CMP_NLE_UQ));
    }

    static float reduce_max(vec a) {
        const __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 y = _mm_max_ps(x, _mm_movehl_ps(x, x));

        return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
    }
    static float reduce_add(vec a) {
        const __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 y = _mm_add_ps(x, _mm_movehl_ps(x, x));

        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }

    // dst[i] (+)= the sum of a[i], i < 4
    static void sum_4(const vec * a, float * dst, bool accumulate) {
        const __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
        __m128       s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

        if (accumulate) {
            s = _mm_add_ps(s, _mm_loadu_ps(dst));
        }
        _mm_storeu_ps(dst, s);
    }
};

} // namespace
