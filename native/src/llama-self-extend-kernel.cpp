#include "llama-self-extend-kernel.h"

#include "llama-self-extend-gemm.h"

#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

//
// All query heads of a KV head and a tile of tokens are the rows of one small matrix, so that K and V are unpacked once
// for all of them. The running maximum and the running sum pass from the far part to the near part: this is what makes it
// one softmax.
//
// With many rows (prompts) everything is kept transposed, with the rows in the last dimension:
//
//   S^T [cells, rows] = K   [cells, n_embd_head_k] * Q^T [n_embd_head_k, rows]
//   O^T [n_embd_head_v, rows] += V^T [n_embd_head_v, cells] * softmax(S^T)
//
// Then neither K nor V has to be transposed, in whichever layout V is cached, and the softmax runs over whole vectors of
// rows. With fewer rows than a vector has elements (decode) that would waste most of each vector, and the scores are dot
// products of rows as they lie in the cache.
//

static constexpr int64_t N_CELLS     = 64;  // of a tile
static constexpr int64_t N_ROWS_MAX  = 192; // of a tile
static constexpr int64_t N_ITEMS_MIN = 32;  // below this the cells are split as well
static constexpr int64_t N_SPLIT_MAX = 16;

enum { FAR, NEAR, N_PARTS };

static int64_t pad(int64_t n, int64_t m) {
    return (n + m - 1)/m*m;
}

//
// the problem, as read from the sources of the node
//

struct attn_problem {
    const ggml_tensor * q[N_PARTS];
    const ggml_tensor * k[N_PARTS];
    const ggml_tensor * v[N_PARTS];
    const ggml_tensor * mask;
    const ggml_tensor * sinks;

    int64_t n_embd_k;
    int64_t n_embd_v;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t n_tokens;
    int64_t n_stream;

    bool v_trans;

    explicit attn_problem(ggml_tensor * const * src) :
        q { src[0], src[3] }, k { src[1], src[4] }, v { src[2], src[5] }, mask(src[6]), sinks(src[7]),
        n_embd_k (q[FAR]->ne[0]),
        n_embd_v (0),
        n_head   (q[FAR]->ne[1]),
        n_head_kv(k[FAR]->ne[1]),
        n_tokens (q[FAR]->ne[2]),
        n_stream (k[FAR]->ne[3]),
        v_trans  (v[FAR]->nb[1] > v[FAR]->nb[2]) {
        n_embd_v = v[FAR]->ne[v_trans ? 2 : 0];
    }

    // query heads for each KV head
    int64_t n_gqa() const {
        return n_head/n_head_kv;
    }

    // tokens of a stream
    int64_t n_tps() const {
        return n_tokens/n_stream;
    }

    int64_t n_tokens_tile_max() const {
        return std::min(n_tps(), std::max<int64_t>(1, N_ROWS_MAX/n_gqa()));
    }

    int64_t n_items(int64_t n_tokens_tile) const {
        return n_stream*n_head_kv*((n_tps() + n_tokens_tile - 1)/n_tokens_tile);
    }

    // in how many pieces are the cells of an item split?
    int64_t n_split() const {
        return std::clamp<int64_t>(N_ITEMS_MIN/n_items(n_tokens_tile_max()), 1, N_SPLIT_MAX);
    }

    const ggml_fp16_t * mask_row(int64_t token, int part, int64_t cell) const {
        const int64_t is = token/n_tps();
        const int64_t it = token%n_tps();

        const char * row = (const char *) mask->data + it*mask->nb[1] + is*mask->nb[3];

        return (const ggml_fp16_t *) row + (part == NEAR ? k[FAR]->ne[2] : 0) + cell;
    }
};

//
// elementwise
//

static void to_f32(ggml_type type, const void * src, float * dst, int64_t n) {
    switch (type) {
        case GGML_TYPE_F32:  memcpy(dst, src, n*sizeof(float));                                   break;
        case GGML_TYPE_F16:  ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) src, dst, n);            break;
        case GGML_TYPE_BF16: ggml_cpu_bf16_to_fp32((const ggml_bf16_t *) src, dst, n);            break;
        default:             ggml_get_type_traits(type)->to_float(src, dst, n);                   break;
    }
}

// exp(v), exactly 0 for -INFINITY. relative error below 2e-7, and a form that compilers vectorize
static inline float exp_f32(float v) {
    const float c = std::max(v, -87.0f);

    // exp(c) = 2^k * exp(r), |r| <= ln(2)/2; adding 1.5*2^23 rounds to an integer
    const float kf = (c*1.44269504f + 12582912.0f) - 12582912.0f;
    const float r  = (c - kf*0.693145752f) - kf*1.42860677e-6f;

    float p = 1.98756915e-4f;
    p = p*r + 1.39819995e-3f;
    p = p*r + 8.33345190e-3f;
    p = p*r + 4.16657957e-2f;
    p = p*r + 1.66666655e-1f;
    p = p*r + 5.00000012e-1f;
    p = p*r*r + r + 1.0f;

    const int32_t bits = (int32_t(kf) + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof(scale));

    return v < -87.0f ? 0.0f : p*scale;
}

//
// one item: the query heads of a KV head, a tile of tokens, a piece of the cells
//

struct attn_item {
    int64_t head_kv;
    int64_t stream;
    int64_t token0; // of the batch
    int64_t n_tokens;
    int64_t split;
};

static constexpr int64_t NV = SELF_EXTEND_GEMM_NV;

// the working set of a thread. element (row, x) of q, s and o is at row*stride_row + x*stride_x
struct attn_scratch {
    std::vector<float> buf;

    bool    wide;    // rows in the last dimension
    int64_t n_rows;  // padded to whole vectors if wide
    int64_t ldk;     // n_embd_k and n_embd_v, padded to whole vectors
    int64_t ldv;

    float * q[N_PARTS];
    float * s;
    float * o;
    float * m;    // [n_rows] running maximum
    float * l;    // [n_rows] running sum
    float * ms;   // [n_rows] what is subtracted from the scores
    float * corr; // [n_rows] what was summed up before is multiplied by this
    float * k;    // [N_CELLS, ldk]
    float * v;    // [N_CELLS, ldv] or [n_embd_v, N_CELLS]

    void reserve(const attn_problem & pr, int64_t n_rows_max) {
        ldk = pad(pr.n_embd_k, NV);
        ldv = pad(pr.n_embd_v, NV);
        n_rows_max = pad(n_rows_max, NV);

        // zeros: what is padded is computed with, so it has to be finite
        buf.assign((2*ldk + N_CELLS + ldv + 4)*n_rows_max + N_CELLS*(ldk + ldv), 0.0f);

        float * p = buf.data();
        const auto take = [&](int64_t n) { float * res = p; p += n; return res; };

        q[FAR]  = take(ldk*n_rows_max);
        q[NEAR] = take(ldk*n_rows_max);
        s       = take(N_CELLS*n_rows_max);
        o       = take(ldv*n_rows_max);
        m       = take(n_rows_max);
        l       = take(n_rows_max);
        ms      = take(n_rows_max);
        corr    = take(n_rows_max);
        k       = take(N_CELLS*ldk);
        v       = take(N_CELLS*ldv);
    }

    void begin(int64_t n) {
        wide   = n >= NV;
        n_rows = wide ? pad(n, NV) : n;

        std::fill_n(o, ldv*n_rows, 0.0f);
        std::fill_n(m, n_rows, -INFINITY);
        std::fill_n(l, n_rows, 0.0f);
    }

    float & at_q(int part, int64_t r, int64_t d) { return wide ? q[part][d*n_rows + r] : q[part][r*ldk + d]; }
    float & at_s(          int64_t r, int64_t j) { return wide ? s[j*n_rows + r]       : s[r*N_CELLS + j];   }
    float & at_o(          int64_t r, int64_t d) { return wide ? o[d*n_rows + r]       : o[r*ldv + d];       }
};

static void load_q(const attn_problem & pr, const attn_item & it, float scale, attn_scratch & sc) {
    for (int part = 0; part < N_PARTS; ++part) {
        const ggml_tensor * q = pr.q[part];

        for (int64_t r = 0; r < it.n_tokens*pr.n_gqa(); ++r) {
            const int64_t token = it.token0 + r/pr.n_gqa();
            const int64_t head  = it.head_kv*pr.n_gqa() + r%pr.n_gqa();

            const float * src = (const float *) ((const char *) q->data + head*q->nb[1] + token*q->nb[2]);

            for (int64_t d = 0; d < pr.n_embd_k; ++d) {
                sc.at_q(part, r, d) = src[d]*scale;
            }
        }
    }
}

// ask for memory that is needed soon. the rows of one head lie too far apart for the hardware to see where this is going
static void prefetch(const char * row, size_t n_bytes) {
#if defined(__GNUC__)
    for (size_t i = 0; i < n_bytes; i += 64) {
        __builtin_prefetch(row + i);
    }
#else
    GGML_UNUSED(row);
    GGML_UNUSED(n_bytes);
#endif
}

static constexpr int64_t N_PREFETCH = 16; // rows

// unpack n_rows rows of n values, of n_rows_max that are there
static void load_rows(
        ggml_type type, const char * src, size_t stride, int64_t n_rows, int64_t n_rows_max, int64_t n, float * dst, int64_t ld) {
    const size_t n_bytes = ggml_row_size(type, n);

    for (int64_t j = 0; j < n_rows; ++j) {
        prefetch(src + std::min(j + N_PREFETCH, n_rows_max - 1)*stride, n_bytes);
        to_f32(type, src + j*stride, dst + j*ld, n);
    }
}

static const char * head_data(const ggml_tensor * t, const attn_item & it) {
    return (const char *) t->data + it.head_kv*t->nb[1] + it.stream*t->nb[3];
}

static void load_k(const attn_problem & pr, const attn_item & it, int part, int64_t cell0, int64_t n_cells, attn_scratch & sc) {
    const ggml_tensor * k = pr.k[part];

    load_rows(k->type, head_data(k, it) + cell0*k->nb[2], k->nb[2], n_cells, k->ne[2] - cell0, pr.n_embd_k, sc.k, sc.ldk);
}

static void load_v(const attn_problem & pr, const attn_item & it, int part, int64_t cell0, int64_t n_cells, attn_scratch & sc) {
    const ggml_tensor * v = pr.v[part];

    if (pr.v_trans) {
        load_rows(v->type, head_data(v, it) + cell0*v->nb[0], v->nb[2], pr.n_embd_v, pr.n_embd_v, n_cells, sc.v, N_CELLS);
    } else {
        load_rows(v->type, head_data(v, it) + cell0*v->nb[2], v->nb[2], n_cells, v->ne[2] - cell0, pr.n_embd_v, sc.v, sc.ldv);
    }
}

static int64_t count_masked(const ggml_fp16_t * mask, int64_t n_cells) {
    int64_t res = 0;
    for (int64_t j = 0; j < n_cells; ++j) {
        res += mask[j] != 0;
    }
    return res;
}

static bool all_masked(const attn_problem & pr, const attn_item & it, int part, int64_t cell0, int64_t n_cells) {
    for (int64_t t = 0; t < it.n_tokens; ++t) {
        if (count_masked(pr.mask_row(it.token0 + t, part, cell0), n_cells) < n_cells) {
            return false;
        }
    }
    return true;
}

static void apply_mask(const attn_problem & pr, const attn_item & it, int part, int64_t cell0, int64_t n_cells, attn_scratch & sc) {
    for (int64_t t = 0; t < it.n_tokens; ++t) {
        const ggml_fp16_t * mask = pr.mask_row(it.token0 + t, part, cell0);

        if (count_masked(mask, n_cells) == 0) {
            continue;
        }
        for (int64_t j = 0; j < n_cells; ++j) {
            for (int64_t g = 0; mask[j] != 0 && g < pr.n_gqa(); ++g) {
                sc.at_s(t*pr.n_gqa() + g, j) = -INFINITY;
            }
        }
    }
}

// scores -> weights; the running maximum and sum go on, and corr is set
static void softmax_wide(int64_t n_cells, attn_scratch & sc) {
    const int64_t n = sc.n_rows;

    std::copy_n(sc.m, n, sc.corr);
    for (int64_t j = 0; j < n_cells; ++j) {
        for (int64_t r = 0; r < n; ++r) {
            sc.m[r] = std::max(sc.m[r], sc.s[j*n + r]);
        }
    }

    // a row that has seen nothing yet must not subtract -INFINITY from itself
    for (int64_t r = 0; r < n; ++r) {
        sc.ms[r]   = sc.m[r] == -INFINITY ? 0.0f : sc.m[r];
        sc.corr[r] = exp_f32(sc.corr[r] - sc.ms[r]);
        sc.l[r]   *= sc.corr[r];
    }

    for (int64_t j = 0; j < n_cells; ++j) {
        for (int64_t r = 0; r < n; ++r) {
            const float p = exp_f32(sc.s[j*n + r] - sc.ms[r]);

            sc.s[j*n + r] = p;
            sc.l[r]      += p;
        }
    }
}

static void softmax_narrow(int64_t n_cells, attn_scratch & sc) {
    for (int64_t r = 0; r < sc.n_rows; ++r) {
        float * s = sc.s + r*N_CELLS;

        std::fill(s + n_cells, s + N_CELLS, -INFINITY);

        // NV maxima and sums at a time, in a form that compilers vectorize
        float part[NV];
        std::fill_n(part, NV, sc.m[r]);
        for (int64_t j = 0; j < N_CELLS; j += NV) {
            for (int64_t i = 0; i < NV; ++i) {
                part[i] = std::max(part[i], s[j + i]);
            }
        }

        const float m_old = sc.m[r];
        const float m_new = *std::max_element(part, part + NV);
        const float ms    = m_new == -INFINITY ? 0.0f : m_new;

        std::fill_n(part, NV, 0.0f);
        for (int64_t j = 0; j < N_CELLS; j += NV) {
            for (int64_t i = 0; i < NV; ++i) {
                s[j + i]  = exp_f32(s[j + i] - ms);
                part[i]  += s[j + i];
            }
        }

        sc.m[r]    = m_new;
        sc.corr[r] = exp_f32(m_old - ms);
        sc.l[r]    = std::accumulate(part, part + NV, sc.l[r]*sc.corr[r]);
    }
}

// add the cells [cell0, cell0 + n_cells) to the running softmax
static void attend_tile(
        const attn_problem & pr, const llama_self_extend_attn_params & params, const attn_item & it,
        int part, int64_t cell0, int64_t n_cells, attn_scratch & sc) {
    if (all_masked(pr, it, part, cell0, n_cells)) {
        return;
    }

    const int64_t n = sc.n_rows;

    load_k(pr, it, part, cell0, n_cells, sc);

    if (sc.wide) {
        self_extend_gemm(sc.s, sc.k, sc.ldk, 1, sc.q[part], pad(n_cells, 8), pr.n_embd_k, n, false);
    } else {
        for (int64_t j = 0; j < n_cells; ++j) {
            for (int64_t r = 0; r < n; ++r) {
                sc.s[r*N_CELLS + j] = self_extend_dot(sc.q[part] + r*sc.ldk, sc.k + j*sc.ldk, sc.ldk);
            }
        }
    }

    if (params.logit_softcap != 0.0f) {
        for (int64_t i = 0; i < N_CELLS*n; ++i) {
            sc.s[i] = params.logit_softcap*tanhf(sc.s[i]);
        }
    }

    apply_mask(pr, it, part, cell0, n_cells, sc);

    load_v(pr, it, part, cell0, n_cells, sc);

    if (sc.wide) {
        softmax_wide(n_cells, sc);

        for (int64_t d = 0; d < pr.n_embd_v; ++d) {
            for (int64_t r = 0; r < n; ++r) {
                sc.o[d*n + r] *= sc.corr[r];
            }
        }

        self_extend_gemm(sc.o, sc.v, pr.v_trans ? N_CELLS : 1, pr.v_trans ? 1 : sc.ldv, sc.s, pr.n_embd_v, n_cells, n, true);
    } else {
        softmax_narrow(n_cells, sc);

        for (int64_t r = 0; r < n; ++r) {
            for (int64_t d = 0; d < sc.ldv; ++d) {
                sc.o[r*sc.ldv + d] *= sc.corr[r];
            }
        }

        if (pr.v_trans) {
            for (int64_t d = 0; d < pr.n_embd_v; ++d) {
                for (int64_t r = 0; r < n; ++r) {
                    sc.o[r*sc.ldv + d] += self_extend_dot(sc.s + r*N_CELLS, sc.v + d*N_CELLS, N_CELLS);
                }
            }
        } else {
            self_extend_gemm(sc.o, sc.s, N_CELLS, 1, sc.v, n, n_cells, sc.ldv, true);
        }
    }
}

static void attend(
        const attn_problem & pr, const llama_self_extend_attn_params & params, const attn_item & it,
        int64_t n_split, attn_scratch & sc) {
    sc.begin(it.n_tokens*pr.n_gqa());

    load_q(pr, it, params.logit_softcap != 0.0f ? params.scale/params.logit_softcap : params.scale, sc);

    // the live cells of the tile, far and near
    int64_t begin[N_PARTS] = { INT64_MAX, INT64_MAX };
    int64_t end  [N_PARTS] = { 0, 0 };

    for (int64_t t = it.token0; t < it.token0 + it.n_tokens; ++t) {
        const auto & range = params.ranges[t];

        if (range.far_begin < range.far_end) {
            begin[FAR] = std::min<int64_t>(begin[FAR], range.far_begin);
            end  [FAR] = std::max<int64_t>(end  [FAR], range.far_end);
        }
        if (range.near_begin < range.near_end) {
            begin[NEAR] = std::min<int64_t>(begin[NEAR], range.near_begin);
            end  [NEAR] = std::max<int64_t>(end  [NEAR], range.near_end);
        }
    }

    // the pieces are cut from both parts laid end to end, so that each has the same work
    const int64_t n_far  = std::max<int64_t>(0, end[FAR]  - begin[FAR]);
    const int64_t n_near = std::max<int64_t>(0, end[NEAR] - begin[NEAR]);
    const int64_t piece  = pad((n_far + n_near + n_split - 1)/n_split, 8);
    const int64_t piece0 = it.split*piece;
    const int64_t piece1 = piece0 + piece;

    for (int part = 0; part < N_PARTS; ++part) {
        const int64_t offs = part == FAR ? 0 : n_far;
        const int64_t n    = part == FAR ? n_far : n_near;

        const int64_t j0 = std::clamp<int64_t>(piece0 - offs, 0, n);
        const int64_t j1 = std::clamp<int64_t>(piece1 - offs, 0, n);

        for (int64_t j = j0; j < j1; j += N_CELLS) {
            attend_tile(pr, params, it, part, begin[part] + j, std::min(N_CELLS, j1 - j), sc);
        }
    }
}

// divide by the sum, in which a sink takes part
static void finish_row(float * dst, int64_t n, float m, float l, const float * sink) {
    float scale = 1.0f;

    if (sink) {
        const float m_new = std::max(m, *sink);

        scale = expf(m - m_new);
        l     = l*scale + expf(*sink - m_new);
    }

    scale = l > 0.0f ? scale/l : 0.0f;

    for (int64_t d = 0; d < n; ++d) {
        dst[d] *= scale;
    }
}

static const float * sink_of(const attn_problem & pr, int64_t head) {
    return pr.sinks ? (const float *) pr.sinks->data + head : nullptr;
}

//
// nodes
//

// dst [n_embd_v, n_head, n_tokens], or with split cells [n_embd_v + 2, n_head, n_tokens, n_split]: not divided, maximum, sum
static void compute_attn(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const attn_problem pr(dst->src);
    const auto & params = *(const llama_self_extend_attn_params *) userdata;

    const int64_t n_split = dst->ne[3];

    // smaller tiles if there are not enough for all threads
    int64_t n_tokens_tile = pr.n_tokens_tile_max();
    while (n_split == 1 && n_tokens_tile > 16 && pr.n_items(n_tokens_tile) < 4*nth) {
        n_tokens_tile = (n_tokens_tile + 1)/2;
    }

    // a custom node has no work buffer of its own
    static thread_local attn_scratch sc;
    sc.reserve(pr, n_tokens_tile*pr.n_gqa());

    const int64_t n_tiles = (pr.n_tps() + n_tokens_tile - 1)/n_tokens_tile;

    for (int64_t i = ith; i < pr.n_items(n_tokens_tile)*n_split; i += nth) {
        attn_item it;

        it.split    = i%n_split;
        it.head_kv  = i/n_split%pr.n_head_kv;
        it.stream   = i/n_split/pr.n_head_kv/n_tiles;
        it.token0   = i/n_split/pr.n_head_kv%n_tiles*n_tokens_tile;
        it.n_tokens = std::min(n_tokens_tile, pr.n_tps() - it.token0);
        it.token0  += it.stream*pr.n_tps();

        attend(pr, params, it, n_split, sc);

        for (int64_t r = 0; r < it.n_tokens*pr.n_gqa(); ++r) {
            const int64_t token = it.token0 + r/pr.n_gqa();
            const int64_t head  = it.head_kv*pr.n_gqa() + r%pr.n_gqa();

            float * out = (float *) ((char *) dst->data + head*dst->nb[1] + token*dst->nb[2] + it.split*dst->nb[3]);

            for (int64_t d = 0; d < pr.n_embd_v; ++d) {
                out[d] = sc.at_o(r, d);
            }

            if (n_split > 1) {
                out[pr.n_embd_v + 0] = sc.m[r];
                out[pr.n_embd_v + 1] = sc.l[r];
            } else {
                finish_row(out, pr.n_embd_v, sc.m[r], sc.l[r], sink_of(pr, head));
            }
        }
    }
}

// put the pieces of compute_attn() together
static void compute_reduce(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(userdata);

    const ggml_tensor * src   = dst->src[0];
    const ggml_tensor * sinks = dst->src[1];

    const int64_t n_embd_v = dst->ne[0];
    const int64_t n_head   = dst->ne[1];
    const int64_t n_split  = src->ne[3];

    for (int64_t i = ith; i < n_head*dst->ne[2]; i += nth) {
        const int64_t head  = i%n_head;
        const int64_t token = i/n_head;

        const auto piece = [&](int64_t split) {
            return (const float *) ((const char *) src->data + head*src->nb[1] + token*src->nb[2] + split*src->nb[3]);
        };

        float m = -INFINITY;
        for (int64_t split = 0; split < n_split; ++split) {
            m = std::max(m, piece(split)[n_embd_v]);
        }

        float * out = (float *) ((char *) dst->data + head*dst->nb[1] + token*dst->nb[2]);
        std::fill_n(out, n_embd_v, 0.0f);

        float l = 0.0f;
        for (int64_t split = 0; split < n_split && m > -INFINITY; ++split) {
            const float * cur   = piece(split);
            const float   scale = expf(cur[n_embd_v] - m);

            l += scale*cur[n_embd_v + 1];
            for (int64_t d = 0; d < n_embd_v; ++d) {
                out[d] += scale*cur[d];
            }
        }

        finish_row(out, n_embd_v, m, l, sinks ? (const float *) sinks->data + head : nullptr);
    }
}

ggml_tensor * llama_self_extend_attn_build(
        ggml_context * ctx,
        ggml_tensor  * q_far,
        ggml_tensor  * k_far,
        ggml_tensor  * v_far,
        ggml_tensor  * q_near,
        ggml_tensor  * k_near,
        ggml_tensor  * v_near,
        ggml_tensor  * mask,
        ggml_tensor  * sinks,
        llama_self_extend_attn_params * params) {
    GGML_ASSERT(q_far->type == GGML_TYPE_F32 && q_near->type == GGML_TYPE_F32);
    GGML_ASSERT(mask->type == GGML_TYPE_F16);
    GGML_ASSERT(mask->ne[0] == k_far->ne[2] + k_near->ne[2]);

    ggml_tensor * args[] = { q_far, k_far, v_far, q_near, k_near, v_near, mask, sinks };

    const attn_problem pr(args);

    GGML_ASSERT(pr.n_head   % pr.n_head_kv == 0);
    GGML_ASSERT(pr.n_tokens % pr.n_stream  == 0);
    GGML_ASSERT(!pr.v_trans || !ggml_is_quantized(v_far->type));

    const int64_t n_split = pr.n_split();

    ggml_tensor * cur = ggml_custom_4d(ctx, GGML_TYPE_F32,
            pr.n_embd_v + (n_split > 1 ? 2 : 0), pr.n_head, pr.n_tokens, n_split,
            args, std::size(args), compute_attn, GGML_N_TASKS_MAX, params);

    if (n_split > 1) {
        ggml_tensor * args_reduce[] = { cur, sinks };

        cur = ggml_custom_4d(ctx, GGML_TYPE_F32, pr.n_embd_v, pr.n_head, pr.n_tokens, 1,
                args_reduce, std::size(args_reduce), compute_reduce, GGML_N_TASKS_MAX, params);
    }

    return cur;
}
