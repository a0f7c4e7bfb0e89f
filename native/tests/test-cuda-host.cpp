// The fused attention of CUDA devices without one: our sources and ggml's kernels, compiled for the host (cuda-host/), on random
// shapes against one softmax over both parts in double precision.

#include "attention/llama-self-extend-attn.h"

#include "cuda-host/cuda-host.h"

#include "attention/cuda/llama-self-extend-attn-cuda.h"

#include "ggml-backend-impl.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

enum seen_t { SEEN_CAUSAL, SEEN_RUNS, SEEN_HOLES, SEEN_FEW, N_SEEN };

struct test_case {
    int       cc;
    int       n_multiprocessors;
    int       n_blocks; // of a multiprocessor
    bool      last_warp_first;
    int64_t   n_embd;
    int64_t   n_head_kv;
    int64_t   n_gqa;
    int64_t   n_tps; // tokens of a stream
    int64_t   n_stream;
    int64_t   n_kv[2];
    int64_t   n_unused; // cells after these
    ggml_type type_k;
    ggml_type type_v;
    bool      sinks;
    float     softcap;
    bool      one_q; // far and near queries lie in one tensor
    seen_t    seen;
};

using values = std::vector<float>;

//
// tensors, each in memory of its own with NaN around it
//

struct tensors {
    static constexpr size_t N_AROUND = 64*1024;

    ggml_context_ptr ctx { ggml_init({ 64*ggml_tensor_overhead(), nullptr, true }) };

    struct block {
        std::unique_ptr<char, void (*)(void *)> memory;

        size_t n_bytes;
    };

    std::vector<block> blocks;

    char * alloc(size_t n_bytes) {
        const size_t n_all = GGML_PAD(n_bytes, 256) + 2*N_AROUND;

        blocks.push_back({ { (char *) aligned_alloc(256, n_all), free }, n_bytes });
        memset(blocks.back().memory.get(), 0xff, n_all);

        return blocks.back().memory.get() + N_AROUND;
    }

    // whether nothing was written around them
    bool intact() const {
        for (const auto & block : blocks) {
            const auto is_ff = [&](size_t begin) {
                return std::all_of(block.memory.get() + begin, block.memory.get() + begin + N_AROUND, [](char c) { return c == char(0xff); });
            };
            if (!is_ff(0) || !is_ff(N_AROUND + block.n_bytes)) {
                return false;
            }
        }
        return true;
    }

    // strides in bytes
    ggml_tensor * add(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, size_t nb1, size_t nb2, size_t nb3, char * data) {
        ggml_tensor * t = ggml_new_tensor_4d(ctx.get(), type, ne0, ne1, ne2, ne3);

        t->nb[1] = nb1;
        t->nb[2] = nb2;
        t->nb[3] = nb3;
        t->data  = data;

        return t;
    }

    ggml_tensor * add(ggml_type type, int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1, int64_t ne3 = 1) {
        ggml_tensor * t = ggml_new_tensor_4d(ctx.get(), type, ne0, ne1, ne2, ne3);
        t->data = alloc(ggml_nbytes(t));
        return t;
    }
};

static values random_row(int64_t n, std::mt19937 & rng) {
    std::uniform_real_distribution<float> dist(-1.7f, 1.7f); // variance about 1

    values x(n);
    for (auto & v : x) {
        v = dist(rng);
    }
    return x;
}

// K or V of a part, as llama_kv_cache has it: heads of a cell side by side, with cells that are not in use, and more streams
struct cache {
    ggml_tensor * t;

    std::vector<values> val; // [n_stream*n_kv*n_head_kv], as they are read

    cache(tensors & mem, const test_case & tc, ggml_type type, int64_t n_kv, std::mt19937 & rng) {
        const int64_t n_cells = n_kv + tc.n_unused;
        const int64_t stream0 = rng() % 2;
        const size_t  nb      = ggml_row_size(type, tc.n_embd);
        const size_t  nb_s    = nb*tc.n_head_kv*n_cells;

        t = mem.add(type, tc.n_embd, tc.n_head_kv, n_kv, tc.n_stream, nb, nb*tc.n_head_kv, nb_s, mem.alloc((stream0 + tc.n_stream)*nb_s) + stream0*nb_s);

        for (int64_t i = 0; i < tc.n_stream*n_kv*tc.n_head_kv; ++i) {
            auto & x = val.emplace_back(random_row(tc.n_embd, rng));

            char * dst = (char *) t->data + i/tc.n_head_kv/n_kv*t->nb[3] + i/tc.n_head_kv%n_kv*t->nb[2] + i%tc.n_head_kv*t->nb[1];

            ggml_quantize_chunk(type, x.data(), dst, 0, 1, tc.n_embd, nullptr);
            if (type != GGML_TYPE_F32) {
                ggml_get_type_traits(type)->to_float(dst, x.data(), tc.n_embd);
            }
        }
    }

    const values & at(const test_case & tc, int64_t stream, int64_t cell, int64_t head_kv) const {
        return val[(stream*t->ne[2] + cell)*tc.n_head_kv + head_kv];
    }

    // What kernels want in F16 is rounded to it.
    void round_to_f16() {
        for (auto & x : val) {
            for (auto & v : x) {
                v = ggml_fp16_to_fp32(ggml_fp32_to_fp16(v));
            }
        }
    }
};

struct part {
    cache k;
    cache v;

    ggml_tensor * q;

    std::vector<values> q_val; // [n_tokens*n_head]

    part(tensors & mem, const test_case & tc, int64_t n_kv, std::mt19937 & rng) :
        k(mem, tc, tc.type_k, n_kv, rng), v(mem, tc, tc.type_v, n_kv, rng) {}

    void set_q(const test_case & tc, ggml_tensor * t, std::mt19937 & rng) {
        const int64_t n_head = tc.n_head_kv*tc.n_gqa;

        q = t;
        for (int64_t i = 0; i < t->ne[2]*n_head; ++i) {
            q_val.push_back(random_row(tc.n_embd, rng));
            memcpy((char *) q->data + i%n_head*q->nb[1] + i/n_head*q->nb[2], q_val[i].data(), q->nb[1]);
        }
    }
};

static void make_q(tensors & mem, const test_case & tc, std::vector<part> & parts, std::mt19937 & rng) {
    const int64_t n_head   = tc.n_head_kv*tc.n_gqa;
    const int64_t n_tokens = tc.n_tps*tc.n_stream;
    const size_t  nb_head  = tc.n_embd*sizeof(float);

    const auto nb_token = [&] { return (tc.n_embd*n_head + rng() % 2*16)*sizeof(float); }; // of a fused Q, K and V

    size_t nb   = nb_token();
    char * data = mem.alloc(2*nb*n_tokens);

    for (auto & part : parts) {
        part.set_q(tc, mem.add(GGML_TYPE_F32, tc.n_embd, n_head, n_tokens, 1, nb_head, nb, nb*n_tokens, data), rng);

        if (tc.one_q) {
            data += nb*n_tokens;
        } else {
            nb   = (tc.n_embd*n_head + 32)*sizeof(float);
            data = mem.alloc(nb*n_tokens);
        }
    }
    if (tc.one_q && rng() % 2) {
        std::swap(parts[0].q, parts[1].q);
        std::swap(parts[0].q_val, parts[1].q_val);
    }
}

// which cells of a part a token sees, and the range that says so
static std::vector<bool> pick_seen(const test_case & tc, int part, int64_t t, int64_t depth, llama_self_extend_range & range, std::mt19937 & rng) {
    const int64_t n = tc.n_kv[part];

    std::vector<bool> res(n);

    int64_t begin = 0;
    int64_t end   = 0;

    if (tc.seen == SEEN_CAUSAL) {
        const int64_t ga_w = 100;
        begin = part == 0 ? 0                : std::min(t, n);
        end   = part == 0 ? depth + t - ga_w : ga_w + t + 1;
        end   = std::clamp<int64_t>(end, 0, n);
    } else if (rng() % 4 != 0 && (tc.seen != SEEN_FEW || rng() % 3 == 0)) {
        begin = rng() % n;
        end   = begin + 1 + rng() % (tc.seen == SEEN_FEW ? std::min<int64_t>(n - begin, 3) : n - begin);
    }

    int32_t first = 0;
    int32_t last  = 0;
    for (int64_t i = begin; i < end; ++i) {
        res[i] = tc.seen != SEEN_HOLES || rng() % 3 == 0;
        if (res[i]) {
            first = last == 0 ? i : first;
            last  = i + 1;
        }
    }

    (part == 0 ? range.far_begin : range.near_begin) = first;
    (part == 0 ? range.far_end   : range.near_end  ) = last;

    return res;
}

//
// what should come out
//

// The vector kernel quantizes the scaled query to Q8_1 where K is quantized: in blocks of 32, with the sum of what is not
// quantized for the offset of Q4_0.
static double dot_vec(const values & q, const values & k, const ggml_fp16_t * d_q4_0, size_t n_bytes_block, float scale) {
    double res = 0.0;

    for (size_t i0 = 0; i0 < q.size(); i0 += 32) {
        float amax = 0.0f;
        for (size_t i = i0; i < i0 + 32; ++i) {
            amax = std::max(amax, std::fabs(q[i]*scale));
        }
        const float d = amax/127;

        double diff = 0.0;
        for (size_t i = i0; i < i0 + 32; ++i) {
            const float cur = d*std::round(q[i]*scale/d);

            res  += double(cur)*k[i];
            diff += double(cur) - double(q[i]*scale);
        }
        if (d_q4_0) {
            res += 8.0*ggml_fp16_to_fp32(*(const ggml_fp16_t *) ((const char *) d_q4_0 + i0/32*n_bytes_block))*diff;
        }
    }
    return res;
}

static std::vector<double> expect(const test_case & tc, const std::vector<part> & parts, const std::vector<bool> * seen,
        int64_t token, int64_t head, float scale, float sink, bool quantized_q) {
    const int64_t stream  = token/tc.n_tps;
    const int64_t head_kv = head/tc.n_gqa;

    std::vector<double>         score;
    std::vector<const values *> v;

    double max = sink;

    for (int p = 0; p < 2; ++p) {
        const values & q = parts[p].q_val[token*tc.n_head_kv*tc.n_gqa + head];

        for (int64_t j = 0; j < tc.n_kv[p]; ++j) {
            if (!seen[p][j]) {
                continue;
            }
            const values & k = parts[p].k.at(tc, stream, j, head_kv);

            double s = 0.0;
            if (quantized_q) {
                const ggml_tensor * t   = parts[p].k.t;
                const char        * row = (const char *) t->data + stream*t->nb[3] + j*t->nb[2] + head_kv*t->nb[1];

                s = dot_vec(q, k, tc.type_k == GGML_TYPE_Q4_0 ? (const ggml_fp16_t *) row : nullptr, ggml_type_size(tc.type_k),
                        tc.softcap != 0.0f ? scale/tc.softcap : scale);
                s *= tc.softcap != 0.0f ? tc.softcap : 1.0;
            } else {
                for (int64_t d = 0; d < tc.n_embd; ++d) {
                    s += double(q[d])*k[d];
                }
                s *= scale;
            }

            score.push_back(tc.softcap != 0.0f ? tc.softcap*std::tanh(s/tc.softcap) : s);
            v.push_back(&parts[p].v.at(tc, stream, j, head_kv));
            max = std::max(max, score.back());
        }
    }

    std::vector<double> res(tc.n_embd, 0.0);

    double sum = sink > -INFINITY ? std::exp(sink - max) : 0.0;
    for (size_t i = 0; i < score.size(); ++i) {
        const double w = std::exp(score[i] - max);

        sum += w;
        for (int64_t d = 0; d < tc.n_embd; ++d) {
            res[d] += w*(*v[i])[d];
        }
    }
    for (auto & x : res) {
        x = sum == 0.0 ? 0.0 : x/sum;
    }
    return res;
}

//
// a case
//

// a device that knows our node
static void * get_proc_address(ggml_backend_reg_t, const char * name) {
    if (strcmp(name, LLAMA_SELF_EXTEND_ATTN_PROC) != 0) {
        return nullptr;
    }
    return (void *)(llama_self_extend_attn_n_work_t) [](ggml_backend_dev_t, const ggml_tensor * node) {
        return llama_self_extend_cuda_n_work(0, node);
    };
}

static ggml_backend_reg    reg = { GGML_BACKEND_API_VERSION, { nullptr, nullptr, nullptr, get_proc_address }, nullptr };
static ggml_backend_device dev = { {}, &reg, nullptr };

struct outcome {
    bool            supported = false;
    bool            intact    = false;
    double          err       = 0.0;
    bool            rounds    = false; // the kernel computes in F16
    bool            converts  = false;
    cuda_host_trace trace     = {};
};

static outcome run(const test_case & tc, std::mt19937 & rng) {
    const int64_t n_head   = tc.n_head_kv*tc.n_gqa;
    const int64_t n_tokens = tc.n_tps*tc.n_stream;

    cuda_host_set_device(tc.cc, tc.n_multiprocessors, tc.n_blocks, tc.last_warp_first);

    tensors mem;

    std::vector<part> parts;
    for (const int64_t n_kv : tc.n_kv) {
        parts.emplace_back(mem, tc, n_kv, rng);
    }
    make_q(mem, tc, parts, rng);

    ggml_tensor * mask   = mem.add(GGML_TYPE_F16, tc.n_kv[0] + tc.n_kv[1], tc.n_tps, 1, tc.n_stream);
    ggml_tensor * bounds = mem.add(GGML_TYPE_I32, LLAMA_SELF_EXTEND_N_RANGE*n_tokens + 2*tc.n_stream);
    ggml_tensor * sinks  = tc.sinks ? mem.add(GGML_TYPE_F32, n_head) : nullptr;

    auto * ranges = (llama_self_extend_range *) bounds->data;
    auto * ends   = (int32_t *) (ranges + n_tokens);

    memset(bounds->data, 0, ggml_nbytes(bounds));

    std::vector<std::vector<bool>> seen; // [n_tokens*2]
    for (int64_t s = 0; s < tc.n_stream; ++s) {
        const int64_t depth = rng() % (tc.n_kv[0] + 100);

        for (int64_t t = 0; t < tc.n_tps; ++t) {
            const int64_t token = s*tc.n_tps + t;

            auto * row = (ggml_fp16_t *) ((char *) mask->data + s*mask->nb[3] + t*mask->nb[1]);

            for (int p = 0; p < 2; ++p) {
                seen.push_back(pick_seen(tc, p, t, depth, ranges[token], rng));
                for (const bool cur : seen.back()) {
                    *row++ = ggml_fp32_to_fp16(cur ? 0.0f : -INFINITY);
                }
                const int32_t end = p == 0 ? ranges[token].far_end : ranges[token].near_end;
                ends[p*tc.n_stream + s] = std::max<int32_t>(ends[p*tc.n_stream + s], GGML_PAD(end, LLAMA_SELF_EXTEND_PAD_END));
            }
        }
    }

    const values sinks_val = tc.sinks ? random_row(n_head, rng) : values(n_head, -INFINITY);
    if (sinks) {
        memcpy(sinks->data, sinks_val.data(), ggml_nbytes(sinks));
    }

    ggml_tensor * const src[] = {
        parts[0].q, parts[0].k.t, parts[0].v.t, parts[1].q, parts[1].k.t, parts[1].v.t, mask, bounds, nullptr, sinks,
    };

    const float scale = 1.0f/std::sqrt(float(tc.n_embd));

    ggml_tensor * out = llama_self_extend_attn_build_device(mem.ctx.get(), &dev, src, scale, tc.softcap);

    outcome res;
    if (!out) {
        return res;
    }
    res.supported = true;

    ggml_tensor * node = out->view_src;

    node->data = mem.alloc(ggml_nbytes(node));
    out ->data = node->data;

    res.trace  = cuda_host_compute(node);
    res.intact = mem.intact();

    const bool vec = res.trace.kernel == CUDA_HOST_VEC;

    // the vector kernel reads as they are stored the types that it was compiled for, in pairs
    const bool f16 = !vec || tc.type_k != tc.type_v || (tc.type_k != GGML_TYPE_F16 && tc.type_k != GGML_TYPE_BF16 &&
            tc.type_k != GGML_TYPE_Q8_0 && tc.type_k != GGML_TYPE_Q4_0);

    for (auto & part : parts) {
        if (f16) {
            part.k.round_to_f16();
            part.v.round_to_f16();
        }
    }

    res.converts = f16 && (tc.type_k != GGML_TYPE_F16 || tc.type_v != GGML_TYPE_F16);
    res.rounds   = res.trace.kernel == CUDA_HOST_MMA || (res.trace.kernel == CUDA_HOST_TILE && tc.cc != 610);

    for (int64_t i = 0; i < n_tokens*n_head; ++i) {
        const auto expected = expect(tc, parts, &seen[i/n_head*2], i/n_head, i%n_head, scale, sinks_val[i%n_head], !f16 && ggml_is_quantized(tc.type_k));

        for (int64_t d = 0; d < tc.n_embd; ++d) {
            const double err = std::fabs(((const float *) out->data)[i*tc.n_embd + d] - expected[d]);

            res.err = std::isnan(err) ? INFINITY : std::max(res.err, err);
        }
    }

    return res;
}

//
// nodes that a device does not compute
//

static int n_wrongly_supported() {
    int res = 0;

    const auto try_node = [&](bool expected, const char * what, auto && change) {
        cuda_host_set_device(__CUDA_ARCH__, 4, 1, false);

        tensors mem;

        struct { int64_t n_embd_k, n_embd_v, n_kv[2]; ggml_type type[4]; size_t pad_q; float softcap; bool aux_0, aux_1, ours; } node = {
            128, 128, { 256, 512 }, { GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F16 }, 0, 0.0f, true, false, true,
        };
        change(node);

        const auto add = [&](ggml_type type, int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1) {
            return ggml_new_tensor_3d(mem.ctx.get(), type, ne0, ne1, ne2);
        };

        ggml_tensor * src[LLAMA_SELF_EXTEND_N_SRC] = {};
        for (int p = 0; p < 2; ++p) {
            src[3*p + 0] = add(GGML_TYPE_F32, node.n_embd_k, 4, 3);
            src[3*p + 1] = add(node.type[2*p + 0], node.n_embd_k, 2, node.n_kv[p]);
            src[3*p + 2] = add(node.type[2*p + 1], node.n_embd_v, 2, node.n_kv[p]);

            src[3*p]->nb[2] += node.pad_q;
        }
        src[LLAMA_SELF_EXTEND_SRC_MASK] = add(GGML_TYPE_F16, node.n_kv[0] + node.n_kv[1], 3);
        src[LLAMA_SELF_EXTEND_SRC_AUX_0] = node.aux_0 ? add(GGML_TYPE_I32, 8*3 + 2) : nullptr;
        src[LLAMA_SELF_EXTEND_SRC_AUX_1] = node.aux_1 ? add(GGML_TYPE_F32, 128) : nullptr;

        ggml_tensor * t = llama_self_extend_attn_new_node(mem.ctx.get(), src, 0.1f, node.softcap, node.n_embd_v, 0,
                [](ggml_tensor *, int, int, void *) {}, nullptr);
        if (!node.ours) {
            memset(t->op_params, 0, sizeof(t->op_params));
        }
        if ((llama_self_extend_cuda_n_work(0, t) >= 0) != expected) {
            fprintf(stderr, "%s: %s\n", what, expected ? "not supported" : "supported");
            res++;
        }
    };

    try_node(true,  "a plain node",                 [](auto &) {});
    try_node(true,  "a soft-cap",                   [](auto & n) { n.softcap = 30.0f; });
    try_node(false, "a soft-cap with heads of 64",  [](auto & n) { n.softcap = 30.0f; n.n_embd_k = n.n_embd_v = 64; });
    try_node(false, "heads of 72",                  [](auto & n) { n.n_embd_k = n.n_embd_v = 72; });
    try_node(false, "heads of 512",                 [](auto & n) { n.n_embd_k = n.n_embd_v = 512; });
    try_node(false, "heads of 192 and 128",         [](auto & n) { n.n_embd_k = 192; });
    try_node(false, "far cells that fill no block", [](auto & n) { n.n_kv[0] = 192; });
    try_node(false, "near cells that fill no block",[](auto & n) { n.n_kv[1] = 544; });
    try_node(false, "keys of two types",            [](auto & n) { n.type[2] = GGML_TYPE_Q8_0; });
    try_node(false, "values of two types",          [](auto & n) { n.type[3] = GGML_TYPE_BF16; });
    try_node(false, "a type without a kernel",      [](auto & n) { n.type[0] = n.type[2] = GGML_TYPE_IQ4_NL; });
    try_node(false, "queries that are not aligned", [](auto & n) { n.pad_q = 4; });
    try_node(false, "no ranges",                    [](auto & n) { n.aux_0 = false; });
    try_node(false, "keys to be stored",            [](auto & n) { n.aux_1 = true; });
    try_node(false, "a node of somebody else",      [](auto & n) { n.ours = false; });

    return res;
}

int main(int argc, char ** argv) {
    const int n_cases = argc > 1 ? atoi(argv[1]) : 300;
    const int seed    = argc > 2 ? atoi(argv[2]) : 1;

    // What computes in F32 has sums of some hundred values of order 1. With F16 the query, the weights and the sums of values
    // are rounded, each to 2^-11, for scores of order 1.
    const double err_f32 = 5e-6;
    const double err_f16 = 5e-3;

    std::mt19937 rng(seed);
    const auto pick = [&](auto... from) {
        const int64_t list[] = { int64_t(from)... };
        return list[rng() % std::size(list)];
    };

    int n_failed = n_wrongly_supported();
    int n_of[CUDA_HOST_N_KERNELS][2] = {};
    int n_converted[2] = {};

    double err_max[2] = {};

    for (int i = 0; i < n_cases; ++i) {
        test_case tc;

        do {
            tc.cc                = __CUDA_ARCH__ == 890 ? pick(600, 600, 800, 890, 900) : __CUDA_ARCH__;
            tc.n_multiprocessors = pick(1, 2, 7, 40, 132);
            tc.n_blocks          = pick(1, 2, 3);
            tc.last_warp_first   = rng() % 2;
            tc.n_embd            = pick(64, 64, 80, 96, 112, 128, 128, 256);
            tc.n_head_kv         = pick(1, 2, 3);
            tc.n_gqa             = pick(1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16);
            tc.n_tps             = pick(1, 1, 1, 2, 3, 8, 17, 33, 64);
            tc.n_stream          = pick(1, 1, 2, 3);
            tc.n_kv[0]           = pick(256, 512, 768, 1024);
            tc.n_kv[1]           = pick(256, 512);
            tc.n_unused          = pick(0, 256, 256);
            tc.type_k            = ggml_type(pick(GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q5_1, GGML_TYPE_F32));
            tc.type_v            = rng() % 3 == 0 ? GGML_TYPE_F16 : tc.type_k;
            tc.sinks             = rng() % 3 == 0;
            tc.softcap           = (tc.n_embd == 128 || tc.n_embd == 256) && rng() % 3 == 0 ? 5.0f : 0.0f;
            tc.one_q             = rng() % 2;
            tc.seen              = seen_t(rng() % N_SEEN);
        } while (tc.n_embd % ggml_blck_size(tc.type_k) != 0 ||
                tc.n_embd*tc.n_head_kv*tc.n_gqa*tc.n_tps*tc.n_stream*(tc.n_kv[0] + tc.n_kv[1]) > 16*1000*1000);

        const outcome res = run(tc, rng);

        const bool allowed = res.err <= (res.rounds ? err_f16 : err_f32);

        if (!res.supported || !res.intact || !allowed) {
            n_failed++;
            fprintf(stderr, "case %d: %s, error %g: kernel %d in %d launches on cc %d with %d x %d, head %d, %d x %d heads, %d tokens, "
                    "%d streams, %d + %d cells, %d unused, %s/%s, sinks %d, softcap %g, one_q %d, seen %d\n",
                    i, !res.supported ? "not supported" : !res.intact ? "memory around a tensor written" : "wrong", res.err, int(res.trace.kernel),
                    res.trace.n_launches, tc.cc, tc.n_multiprocessors, tc.n_blocks, int(tc.n_embd), int(tc.n_head_kv), int(tc.n_gqa), int(tc.n_tps),
                    int(tc.n_stream), int(tc.n_kv[0]), int(tc.n_kv[1]), int(tc.n_unused), ggml_type_name(tc.type_k), ggml_type_name(tc.type_v),
                    tc.sinks, tc.softcap, tc.one_q, tc.seen);
        }

        err_max[res.rounds] = std::max(err_max[res.rounds], res.err);
        n_of[res.trace.kernel][res.trace.n_launches - 1]++;
        n_converted[tc.n_stream > 1 && tc.n_unused > 0] += res.converts;
    }

    printf("arch %d: %d cases, %d failures; vector kernel %d in one launch, %d in two; tile kernel %d, %d; tensor cores %d\n"
           "converted to F16 %d in one piece, %d with gaps; largest error %.1e, where it computes in F16 %.1e\n",
            __CUDA_ARCH__, n_cases, n_failed, n_of[CUDA_HOST_VEC][0], n_of[CUDA_HOST_VEC][1], n_of[CUDA_HOST_TILE][0], n_of[CUDA_HOST_TILE][1],
            n_of[CUDA_HOST_MMA][0], n_converted[0], n_converted[1], err_max[0], err_max[1]);

    // what was compiled for tensor cores takes the tile kernel only where one asks for what P100 does
    const bool tensor_cores = __CUDA_ARCH__ >= 750;
    const bool tile         = __CUDA_ARCH__ != 750;

    const bool all_ran = n_of[CUDA_HOST_VEC][0] && n_of[CUDA_HOST_VEC][1] && (!tensor_cores || n_of[CUDA_HOST_MMA][0]) &&
        (!tile || (n_of[CUDA_HOST_TILE][0] && n_of[CUDA_HOST_TILE][1])) && n_converted[0] && n_converted[1];

    if (!all_ran) {
        fprintf(stderr, "not every kernel ran in every way\n");
    }

    return n_failed > 0 || !all_ran;
}
