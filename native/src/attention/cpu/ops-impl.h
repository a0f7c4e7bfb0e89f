// The operations of ops.h over the vectors of a simd-*.h, which is included before.
//
// This is compiled with instructions that the machine may lack. Nothing here may have external linkage but the table, not
// even by way of a template of the standard library: the linker keeps one copy of those, from whichever file it likes.

#include "attention/cpu/ops.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include <cstring>

namespace {

constexpr int64_t NV = simd::NV;

// rows that share the cells in registers, and vectors of a row that add_rows() keeps there
constexpr int N_ROWS_REG = simd::N_REGS >= 32 ? 4 : 2;
constexpr int N_VECS_REG = 4;

// accumulators of gemm(): N_GEMM_M*N_GEMM_N of 32 registers, or of 16
constexpr int N_GEMM_M = simd::N_REGS >= 32 ? 8 : 4;
constexpr int N_GEMM_N = 3;

constexpr int64_t N_PANEL = N_GEMM_N*NV;

//
// the types of the cache
//

template <ggml_type T> constexpr size_t elem_size() {
    return T == GGML_TYPE_F32 ? 4 : 2;
}

template <ggml_type T> constexpr bool is_quantized() {
    return T == GGML_TYPE_Q8_0 || T == GGML_TYPE_Q4_0;
}

// the values [i, i + NV) of a row, i a multiple of NV
template <ggml_type T> inline simd::vec load_as(const char * row, int64_t i) {
    if constexpr (T == GGML_TYPE_F32) {
        return simd::load((const float *) row + i);
    } else if constexpr (T == GGML_TYPE_F16) {
        return simd::load_f16((const uint16_t *) row + i);
    } else if constexpr (T == GGML_TYPE_BF16) {
        return simd::load_bf16((const uint16_t *) row + i);
    } else if constexpr (T == GGML_TYPE_Q8_0) {
        const auto * b = (const block_q8_0 *) row + i/QK8_0;

        return simd::mul(simd::load_i8(b->qs + i%QK8_0), simd::set1(simd::f16_to_f32(b->d)));
    } else {
        static_assert(T == GGML_TYPE_Q4_0, "not a type that is read as it is");

        const auto * b = (const block_q4_0 *) row + i/QK4_0;

        // the first half of a block is in the low bits
        const int64_t   half = i%QK4_0/(QK4_0/2);
        const simd::vec q    = simd::load_u4(b->qs + i%(QK4_0/2), half != 0);

        return simd::mul(simd::sub(q, simd::set1(8.0f)), simd::set1(simd::f16_to_f32(b->d)));
    }
}

// n < NV values and zeros
template <ggml_type T> inline simd::vec load_tail_as(const char * row, int64_t i, int64_t n) {
    static_assert(!is_quantized<T>(), "quantized rows are whole vectors");

    char tmp[NV*elem_size<T>()] = { 0 };
    memcpy(tmp, row + i*elem_size<T>(), n*elem_size<T>());

    return load_as<T>(tmp, 0);
}

// call f with the type as a constant; false if this type is not read as it is
template <typename F> inline bool with_type(ggml_type type, const F & f) {
    switch (type) {
        case GGML_TYPE_F32:  f.template operator()<GGML_TYPE_F32 >(); return true;
        case GGML_TYPE_F16:  f.template operator()<GGML_TYPE_F16 >(); return true;
        case GGML_TYPE_BF16: f.template operator()<GGML_TYPE_BF16>(); return true;
        case GGML_TYPE_Q8_0: f.template operator()<GGML_TYPE_Q8_0>(); return true;
        case GGML_TYPE_Q4_0: f.template operator()<GGML_TYPE_Q4_0>(); return true;
        default:             return false;
    }
}

struct no_call {
    template <ggml_type T> void operator()() const {}
};

bool reads(ggml_type type) {
    return with_type(type, no_call {});
}

struct unpack_call {
    const char * src;
    float *      dst;
    int64_t      n;

    template <ggml_type T> void operator()() const {
        int64_t i = 0;
        for (; i + NV <= n; i += NV) {
            simd::store(dst + i, load_as<T>(src, i));
        }
        if constexpr (!is_quantized<T>()) {
            if (i < n) {
                float tmp[NV];
                simd::store(tmp, load_tail_as<T>(src, i, n - i));
                memcpy(dst + i, tmp, (n - i)*sizeof(float));
            }
        }
    }
};

void unpack(ggml_type type, const char * src, float * dst, int64_t n) {
    if (!with_type(type, unpack_call { src, dst, n })) {
        ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

//
// few rows
//

constexpr int64_t N_PREFETCH = 32; // cells

// Ask for a row that is needed soon: the rows of one head lie too far apart for the hardware to see where this is going.
// Into the second-level cache, which can wait for more of them at a time than the first. What lies behind the last row may
// be asked for as well, that does no harm.
template <ggml_type T> inline void prefetch(const char * row, int64_t n) {
#if defined(__GNUC__)
    const int64_t n_bytes = T == GGML_TYPE_Q8_0 ? n/QK8_0*sizeof(block_q8_0) : T == GGML_TYPE_Q4_0 ? n/QK4_0*sizeof(block_q4_0) : n*elem_size<T>();

    for (int64_t i = 0; i < n_bytes; i += 64) {
        __builtin_prefetch(row + i, 0, 2);
    }
#else
    (void) row;
    (void) n;
#endif
}

// the rows from r on, as many at a time as fit into registers
template <ggml_type T, int R = N_ROWS_REG, typename C> inline void blocks_of_rows(const C & call, int64_t r) {
    for (; r + R <= call.n_rows; r += R) {
        call.template rows<T, R>(r);
    }
    if constexpr (R > 1) {
        blocks_of_rows<T, R - 1>(call, r);
    }
}

// 4 cells, d bytes apart, with R rows. TAIL: n is not a multiple of NV
template <ggml_type T, int R, bool TAIL, bool ACC>
inline void dot_4(const char * k, size_t d, int64_t n, const float * q, int64_t ldq, float * s, int64_t lds) {
    simd::vec acc[R][4];
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < 4; ++c) {
            acc[r][c] = simd::zero();
        }
    }

    for (int64_t i = 0; i < n; i += NV) {
        simd::vec kv[4];
        for (int c = 0; c < 4; ++c) {
            if constexpr (TAIL) {
                kv[c] = i + NV <= n ? load_as<T>(k + c*d, i) : load_tail_as<T>(k + c*d, i, n - i);
            } else {
                kv[c] = load_as<T>(k + c*d, i);
            }
        }
        for (int r = 0; r < R; ++r) {
            const simd::vec qv = simd::load(q + r*ldq + i);
            for (int c = 0; c < 4; ++c) {
                acc[r][c] = simd::fma(qv, kv[c], acc[r][c]);
            }
        }
    }

    for (int r = 0; r < R; ++r) {
        simd::sum_4(acc[r], s + r*lds, ACC);
    }
}

struct dot_call {
    const char *  k;
    size_t        stride;
    int64_t       n_cells;
    int64_t       n;
    const float * q;
    int64_t       ldq;
    int64_t       n_rows;
    float *       s;
    int64_t       lds;
    bool          accumulate;

    template <ggml_type T> void operator()() const { blocks_of_rows<T>(*this, 0); }

    template <ggml_type T, int R> void rows(int64_t r) const {
        if constexpr (!is_quantized<T>()) {
            if (accumulate) {
                n % NV == 0 ? cells<T, R, false, true>(r, n) : cells<T, R, true, true>(r, n);
                return;
            }
            if (n % NV != 0) {
                cells<T, R, true, false>(r, n);
                return;
            }
        }
        if (n == 64) {
            cells<T, R, false, false>(r, 64); // unrolled
        } else {
            cells<T, R, false, false>(r, n);
        }
    }

    template <ggml_type T, int R, bool TAIL, bool ACC> void cells(int64_t r, int64_t n) const {
        const float * cur_q = q + r*ldq;
        float *       cur_s = s + r*lds;

        int64_t j = 0;
        for (; j + 4 <= n_cells; j += 4) {
            for (int64_t c = 0; c < 4; ++c) {
                prefetch<T>(k + (j + c + N_PREFETCH)*stride, n);
            }
            dot_4<T, R, TAIL, ACC>(k + j*stride, stride, n, cur_q, ldq, cur_s + j, lds);
        }
        for (; j < n_cells; ++j) {
            // one cell, four times
            float tmp[R*4];
            dot_4<T, R, TAIL, false>(k + j*stride, 0, n, cur_q, ldq, tmp, 4);
            for (int i = 0; i < R; ++i) {
                cur_s[i*lds + j] = tmp[i*4] + (ACC ? cur_s[i*lds + j] : 0.0f);
            }
        }
    }
};

void dot_rows(ggml_type type, const char * k, size_t stride, int64_t n_cells, int64_t n,
        const float * q, int64_t ldq, int64_t n_rows, float * s, int64_t lds, bool accumulate) {
    with_type(type, dot_call { k, stride, n_cells, n, q, ldq, n_rows, s, lds, accumulate });
}

struct add_call {
    const char *  v;
    size_t        stride;
    int64_t       n_cells;
    int64_t       n;
    const float * p;
    int64_t       ldp;
    int64_t       n_rows;
    float *       o;
    int64_t       ldo;

    template <ggml_type T> void operator()() const { blocks_of_rows<T>(*this, 0); }

    template <ggml_type T, int R> void rows(int64_t r) const {
        int64_t i = 0;
        for (; i + N_VECS_REG*NV <= n; i += N_VECS_REG*NV) {
            vecs<T, R, N_VECS_REG, false>(r, i);
        }
        for (; i + NV <= n; i += NV) {
            vecs<T, R, 1, false>(r, i);
        }
        if constexpr (!is_quantized<T>()) {
            if (i < n) {
                vecs<T, R, 1, true>(r, i);
            }
        }
    }

    // N vectors of R rows, over all cells
    template <ggml_type T, int R, int N, bool TAIL> void vecs(int64_t r, int64_t i) const {
        simd::vec acc[R][N];
        for (int a = 0; a < R; ++a) {
            for (int b = 0; b < N; ++b) {
                acc[a][b] = simd::load(o + (r + a)*ldo + i + b*NV);
            }
        }

        for (int64_t j = 0; j < n_cells; ++j) {
            const char * row = v + j*stride;

            if (i == 0) {
                prefetch<T>(row + N_PREFETCH*stride, n);
            }

            simd::vec cur[N];
            for (int b = 0; b < N; ++b) {
                if constexpr (TAIL) {
                    cur[b] = load_tail_as<T>(row, i, n - i);
                } else {
                    cur[b] = load_as<T>(row, i + b*NV);
                }
            }
            for (int a = 0; a < R; ++a) {
                const simd::vec w = simd::set1(p[(r + a)*ldp + j]);
                for (int b = 0; b < N; ++b) {
                    acc[a][b] = simd::fma(w, cur[b], acc[a][b]);
                }
            }
        }

        for (int a = 0; a < R; ++a) {
            for (int b = 0; b < N; ++b) {
                simd::store(o + (r + a)*ldo + i + b*NV, acc[a][b]);
            }
        }
    }
};

void add_rows(ggml_type type, const char * v, size_t stride, int64_t n_cells, int64_t n,
        const float * p, int64_t ldp, int64_t n_rows, float * o, int64_t ldo) {
    with_type(type, add_call { v, stride, n_cells, n, p, ldp, n_rows, o, ldo });
}

//
// softmax
//

// 2^x for x <= 0, exactly 0 for -INFINITY. relative error below 2e-7; NaN stays NaN, here and below: max() gives the second
// operand where one of them is NaN
inline simd::vec exp2_vec(simd::vec x) {
    x = simd::max(simd::set1(-200.0f), x);

    const simd::vec n = simd::round(x);
    const simd::vec r = simd::sub(x, n);

    // minimax for |r| <= 1/2
    simd::vec p = simd::set1(1.53458124e-4f);
    p = simd::fma(p, r, simd::set1(1.33999309e-3f));
    p = simd::fma(p, r, simd::set1(9.61848907e-3f));
    p = simd::fma(p, r, simd::set1(5.55032864e-2f));
    p = simd::fma(p, r, simd::set1(2.40226462e-1f));
    p = simd::fma(p, r, simd::set1(6.93147182e-1f));
    p = simd::fma(p, r, simd::set1(1.0f));

    return simd::scale_exp2(p, n);
}

// what is subtracted from the scores: a row that has seen nothing yet must not subtract -INFINITY from itself
inline simd::vec finite_max(simd::vec m) {
    return simd::max(m, simd::set1(-3.0e38f));
}

float softmax_row(float * s, int64_t n_cells, float * m, float * l) {
    const float m_old = *m;

    simd::vec mv = simd::set1(m_old);
    for (int64_t j = 0; j < n_cells; j += NV) {
        mv = simd::max(simd::load(s + j), mv);
    }

    const float     m_new = simd::reduce_max(mv);
    const simd::vec ms    = finite_max(simd::set1(m_new));

    simd::vec sum = simd::zero();
    for (int64_t j = 0; j < n_cells; j += NV) {
        const simd::vec p = exp2_vec(simd::sub(simd::load(s + j), ms));

        simd::store(s + j, p);
        sum = simd::add(sum, p);
    }

    float corr[NV];
    simd::store(corr, exp2_vec(simd::sub(simd::set1(m_old), ms)));

    *m = m_new;
    *l = *l*corr[0] + simd::reduce_add(sum);

    return corr[0];
}

template <int N>
void softmax_panel_n(float * s, int64_t n_cells, float * m, float * l, float * o, int64_t n_embd) {
    simd::vec m_old[N];
    simd::vec m_new[N];
    for (int b = 0; b < N; ++b) {
        m_old[b] = simd::load(m + b*NV);
        m_new[b] = m_old[b];
    }
    for (int64_t j = 0; j < n_cells; ++j) {
        for (int b = 0; b < N; ++b) {
            m_new[b] = simd::max(simd::load(s + (j*N + b)*NV), m_new[b]);
        }
    }

    bool grown = false;
    for (int b = 0; b < N; ++b) {
        grown = grown || simd::any_less(m_old[b], m_new[b]);
    }

    simd::vec ms [N];
    simd::vec sum[N];
    for (int b = 0; b < N; ++b) {
        simd::store(m + b*NV, m_new[b]);
        ms [b] = finite_max(m_new[b]);
        sum[b] = simd::load(l + b*NV);
    }

    if (grown) {
        simd::vec corr[N];
        for (int b = 0; b < N; ++b) {
            corr[b] = exp2_vec(simd::sub(m_old[b], ms[b]));
            sum [b] = simd::mul(sum[b], corr[b]);
        }
        for (int64_t d = 0; d < n_embd; ++d) {
            for (int b = 0; b < N; ++b) {
                float * cur = o + (d*N + b)*NV;
                simd::store(cur, simd::mul(simd::load(cur), corr[b]));
            }
        }
    }

    for (int64_t j = 0; j < n_cells; ++j) {
        for (int b = 0; b < N; ++b) {
            float * cur = s + (j*N + b)*NV;

            const simd::vec p = exp2_vec(simd::sub(simd::load(cur), ms[b]));

            simd::store(cur, p);
            sum[b] = simd::add(sum[b], p);
        }
    }

    for (int b = 0; b < N; ++b) {
        simd::store(l + b*NV, sum[b]);
    }
}

void softmax_panel(float * s, int64_t n_cells, int64_t n_rows, float * m, float * l, float * o, int64_t n_embd) {
    switch (n_rows/NV) {
        case 1: softmax_panel_n<1>(s, n_cells, m, l, o, n_embd); break;
        case 2: softmax_panel_n<2>(s, n_cells, m, l, o, n_embd); break;
        case 3: softmax_panel_n<3>(s, n_cells, m, l, o, n_embd); break;
        default: break;
    }
}

//
// many rows
//

template <int M, int N>
inline void gemm_block(float * c, const float * a, int64_t am, int64_t ak, const float * b, int64_t n_k, bool accumulate) {
    simd::vec acc[M][N];
    for (int i = 0; i < M; ++i) {
        for (int j = 0; j < N; ++j) {
            acc[i][j] = accumulate ? simd::load(c + (i*N + j)*NV) : simd::zero();
        }
    }

    for (int64_t k = 0; k < n_k; ++k) {
        simd::vec bv[N];
        for (int j = 0; j < N; ++j) {
            bv[j] = simd::load(b + (k*N + j)*NV);
        }
        for (int i = 0; i < M; ++i) {
            const simd::vec av = simd::set1(a[i*am + k*ak]);
            for (int j = 0; j < N; ++j) {
                acc[i][j] = simd::fma(av, bv[j], acc[i][j]);
            }
        }
    }

    for (int i = 0; i < M; ++i) {
        for (int j = 0; j < N; ++j) {
            simd::store(c + (i*N + j)*NV, acc[i][j]);
        }
    }
}

template <int N, int M = N_GEMM_M>
void gemm_n(float * c, const float * a, int64_t am, int64_t ak, const float * b, int64_t n_m, int64_t n_k, bool accumulate) {
    int64_t i = 0;
    for (; i + M <= n_m; i += M) {
        // constant strides: the addresses of the elements of A fit into the instructions
        if (am == 1) {
            gemm_block<M, N>(c + i*N*NV, a + i, 1, ak, b, n_k, accumulate);
        } else {
            gemm_block<M, N>(c + i*N*NV, a + i*am, am, 1, b, n_k, accumulate);
        }
    }
    if constexpr (M > 1) {
        gemm_n<N, M/2>(c + i*N*NV, a + i*am, am, ak, b, n_m - i, n_k, accumulate);
    }
}

void gemm(float * c, const float * a, int64_t am, int64_t ak, const float * b, int64_t n_m, int64_t n_k, int64_t n_rows, bool accumulate) {
    switch (n_rows/NV) {
        case 1: gemm_n<1>(c, a, am, ak, b, n_m, n_k, accumulate); break;
        case 2: gemm_n<2>(c, a, am, ak, b, n_m, n_k, accumulate); break;
        case 3: gemm_n<3>(c, a, am, ak, b, n_m, n_k, accumulate); break;
        default: break;
    }
}

//
// any
//

void softcap(float * x, int64_t n, float cap) {
    // tanh(x) = sign(x)*(1 - t)/(1 + t) with t = exp(-2|x|)
    for (int64_t i = 0; i < n; i += NV) {
        const simd::vec v = simd::load(x + i);
        const simd::vec a = simd::max(v, simd::sub(simd::zero(), v));
        const simd::vec t = exp2_vec(simd::mul(a, simd::set1(-2.88539008f)));
        const simd::vec y = simd::div(simd::sub(simd::set1(1.0f), t), simd::add(simd::set1(1.0f), t));

        simd::store(x + i, simd::mul(simd::copy_sign(y, v), simd::set1(cap)));
    }
}

constexpr llama_self_extend_ops make_ops(const char * name) {
    return {
        name, NV, N_PANEL, reads, unpack, dot_rows, add_rows, softmax_row, gemm, softmax_panel, softcap
    };
}

} // namespace
