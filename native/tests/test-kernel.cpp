// the fused kernel against one softmax over both parts in double precision, on random shapes

#include "attn-case.h"

#include "attention/cpu/llama-self-extend-attn-cpu.h"
#include "attention/cpu/ops.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

// from here on there are about as many pieces as there can be
static constexpr int64_t N_FAR_LONG = 9000;

// the largest error of each of the ops
static std::vector<double> run(const test_case & tc, ggml_backend_t backend, uint32_t seed) {
    std::mt19937 rng(seed);

    const int64_t n_head   = tc.n_head_kv*tc.n_gqa;
    const int64_t n_tokens = tc.n_tokens*tc.n_stream;

    tensors mem;

    part parts[2] = { { mem, tc, tc.n_far, rng }, { mem, tc, tc.n_near, rng } };

    part & near = parts[1];

    std::vector<llama_self_extend_range> ranges(n_tokens);
    std::vector<std::vector<bool>>       live;

    ggml_tensor * mask = mem.add(GGML_TYPE_F16, tc.n_far + tc.n_near, tc.n_tokens, 1, tc.n_stream);
    for (int64_t t = 0; t < n_tokens; ++t) {
        ranges[t].near_new = (t%tc.n_tokens + seed)%tc.n_near;
        live.push_back(pick_live(tc, ranges[t], rng));

        for (size_t j = 0; j < live[t].size(); ++j) {
            ((ggml_fp16_t *) mask->data)[t*live[t].size() + j] = ggml_fp32_to_fp16(live[t][j] ? 0.0f : -INFINITY);
        }
    }

    // what is new in the near part
    ggml_tensor * k_new = tc.store ? mem.add(GGML_TYPE_F32, tc.n_embd_k, tc.n_head_kv, n_tokens) : nullptr;
    ggml_tensor * v_new = tc.store ? mem.add(GGML_TYPE_F32, tc.n_embd_v, tc.n_head_kv, n_tokens) : nullptr;

    std::vector<bool> is_new(tc.n_stream*tc.n_near);
    for (int64_t t = 0; t < n_tokens && tc.store; ++t) {
        is_new[t/tc.n_tokens*tc.n_near + ranges[t].near_new] = true;

        for (int64_t h = 0; h < tc.n_head_kv; ++h) {
            const int64_t i = near.index(tc, t/tc.n_tokens, ranges[t].near_new, h);

            memcpy((char *) k_new->data + h*k_new->nb[1] + t*k_new->nb[2], near.k_val[i].data(), k_new->nb[1]);
            memcpy((char *) v_new->data + h*v_new->nb[1] + t*v_new->nb[2], near.v_val[i].data(), v_new->nb[1]);
        }
    }

    for (auto & p : parts) {
        const int64_t bad = rng() % p.n_kv;

        for (int64_t i = 0; i < tc.n_stream*p.n_kv*tc.n_head_kv; ++i) {
            const int64_t stream  = i/tc.n_head_kv/p.n_kv;
            const int64_t cell    = i/tc.n_head_kv%p.n_kv;
            const bool    in      = &p != &near || !is_new[stream*p.n_kv + cell];

            if (cell == bad && in && i%tc.n_head_kv == seed%tc.n_head_kv) {
                p.v_val[i][0] = tc.bad == BAD_V_INF ? INFINITY : p.v_val[i][0];
                p.k_val[i][0] = tc.bad == BAD_K_NAN ? NAN      : p.k_val[i][0];
            }
            p.store(tc, stream, cell, i%tc.n_head_kv);
        }
    }

    ggml_tensor * sinks = tc.sinks ? mem.add(GGML_TYPE_F32, n_head) : nullptr;
    const values  sinks_val = tc.sinks ? random_row(n_head, 1.0f, rng) : values(n_head, -INFINITY);
    if (sinks) {
        memcpy(sinks->data, sinks_val.data(), ggml_nbytes(sinks));
    }

    llama_self_extend_attn_params params;

    params.ranges = ranges.data();

    const float scale = 1.0f/std::sqrt(float(tc.n_embd_k));

    ggml_tensor * const src[] = {
        parts[0].q, parts[0].k, parts[0].v, parts[1].q, parts[1].k, parts[1].v, mask, k_new, v_new, sinks,
    };

    ggml_tensor * out = llama_self_extend_attn_build(mem.ctx.get(), src, scale, tc.softcap, &params);

    ggml_cgraph * gf = ggml_new_graph(mem.ctx.get());
    ggml_build_forward_expand(gf, out);

    const auto compute = [&](int n_threads) {
        mem.alloc(out->view_src);
        out->data = out->view_src->data;

        for (size_t i = 0; i < is_new.size(); ++i) {
            for (int64_t h = 0; is_new[i] && h < tc.n_head_kv; ++h) {
                near.forget(tc, i/tc.n_near, i%tc.n_near, h);
            }
        }

        ggml_backend_cpu_set_n_threads(backend, n_threads);

        const bool ok = ggml_backend_graph_compute(backend, gf) == GGML_STATUS_SUCCESS;

        const float * data = (const float *) out->data;
        return ok ? values(data, data + ggml_nelements(out)) : values();
    };

    std::vector<std::vector<double>> expected; // [n_tokens*n_head]
    for (int64_t i = 0; i < n_tokens*n_head; ++i) {
        expected.push_back(expect(tc, parts, live[i/n_head], i/n_head, i%n_head, scale, sinks_val[i%n_head]).values);
    }

    std::vector<double> err_max;

    for (const auto * const * ops = llama_self_extend_ops_list(); *ops; ++ops) {
        params.ops = *ops;

        const values res   = compute(tc.n_threads);
        const values again = compute(tc.n_far >= N_FAR_LONG ? 40 : 6);

        double & cur = err_max.emplace_back(0.0);

        for (int64_t i = 0; i < ggml_nelements(out); ++i) {
            const double e   = expected[i/tc.n_embd_v][i%tc.n_embd_v];
            const double err = std::abs(res[i] - e);

            if (!std::isfinite(e)) {
                // a token that sees what is not a number cannot have one
                cur = std::isfinite(res[i]) || std::isfinite(again[i]) ? INFINITY : cur;
            } else {
                // nor may the number of threads show
                cur = std::isnan(err) || res[i] != again[i] ? INFINITY : std::max(cur, err);
            }
        }
    }

    return err_max;
}

int main() {
    // F32 sums of at most a few thousand values of order 1, for scores of order 1
    const double err_allowed = 5e-6;

    ggml_backend_ptr backend { ggml_backend_cpu_init() };

    std::mt19937 rng(1);
    const auto pick = [&](const auto & from) { return from[rng() % std::size(from)]; };

    const int64_t   n_embds  [] = { 32, 40, 64, 80, 96, 128, 192, 256 };
    const int64_t   n_gqas   [] = { 1, 2, 3, 4, 7, 8, 16 };
    const int64_t   n_tokenss[] = { 1, 2, 5, 17, 33, 70 };
    const int64_t   n_kvs    [] = { 1, 3, 64, 65, 127, 300, 900 };
    const float     p_lives  [] = { 0.0f, 0.05f, 0.5f, 1.0f };
    const ggml_type types    [] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q5_1 };

    int n_failed = 0;
    int n_run    = 0;

    for (int i = 0; i < 500; ++i) {
        test_case tc = {};

        const auto pick_type = [&](int64_t n_embd) {
            const ggml_type type = pick(types);
            return n_embd % ggml_blck_size(type) == 0 ? type : GGML_TYPE_F16;
        };

        tc.n_embd_k  = pick(n_embds);
        tc.n_embd_v  = rng() % 4 == 0 ? pick(n_embds) : tc.n_embd_k;
        tc.type_k    = pick_type(tc.n_embd_k);
        tc.type_v    = rng() % 4 == 0 || tc.n_embd_v % ggml_blck_size(tc.type_k) != 0 ? pick_type(tc.n_embd_v) : tc.type_k;
        tc.n_head_kv = 1 + rng() % 5;
        tc.n_gqa     = pick(n_gqas);
        tc.n_tokens  = pick(n_tokenss);
        tc.n_far     = pick(n_kvs);
        tc.n_near    = pick(n_kvs);
        tc.n_unused  = rng() % 2 * 40;
        tc.n_stream  = 1 + rng() % 3;
        tc.v_trans   = !ggml_is_quantized(tc.type_v) && rng() % 2 == 0;
        tc.sinks     = rng() % 3 == 0;
        tc.softcap   = rng() % 3 == 0 ? 5.0f : 0.0f;
        tc.q_size    = rng() % 4 == 0 ? 8.0f : 1.0f;
        tc.runs      = rng() % 2 == 0;
        tc.p_live    = pick(p_lives);
        tc.n_threads = 1 + rng() % 3;

        // some long ones, of many pieces
        if (i % 50 == 0) {
            tc.n_far    = N_FAR_LONG + rng() % 8000;
            tc.n_tokens = 1 + rng() % 2;
            tc.n_gqa    = 1 + rng() % 4;
        }

        tc.store = tc.n_tokens*tc.n_gqa < 16 && tc.n_near >= tc.n_tokens && rng() % 2 == 0;

        const bad_t bads[] = { BAD_NONE, BAD_NONE, BAD_NONE, BAD_V_INF, BAD_K_NAN };
        tc.bad = ggml_is_quantized(tc.type_k) || ggml_is_quantized(tc.type_v) ? BAD_NONE : pick(bads);

        const std::vector<double> errs = run(tc, backend.get(), i);

        for (size_t j = 0; j < errs.size(); ++j) {
            n_run++;

            // large scores: their rounding is large too
            if (!(errs[j] <= err_allowed*tc.q_size)) {
                n_failed++;
                fprintf(stderr, "case %d, %s: error %g: n_embd %lld/%lld, heads %lld x %lld, tokens %lld, cells %lld + %lld, streams %lld, %s/%s, "
                        "v_trans %d, sinks %d, softcap %g, q_size %g, runs %d, live %g, store %d, bad %d\n", i, llama_self_extend_ops_list()[j]->name, errs[j],
                        (long long) tc.n_embd_k, (long long) tc.n_embd_v, (long long) tc.n_head_kv, (long long) tc.n_gqa,
                        (long long) tc.n_tokens, (long long) tc.n_far, (long long) tc.n_near, (long long) tc.n_stream,
                        ggml_type_name(tc.type_k), ggml_type_name(tc.type_v), tc.v_trans, tc.sinks, tc.softcap, tc.q_size,
                        tc.runs, tc.p_live, tc.store, tc.bad);
            }
        }
    }

    for (const auto * const * ops = llama_self_extend_ops_list(); *ops; ++ops) {
        printf("%s ", (*ops)->name);
    }
    printf("\n%d cases, %d failures\n", n_run, n_failed);

    return n_failed == 0 ? 0 : 1;
}
