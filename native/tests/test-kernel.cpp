// the fused kernel against one softmax over both parts in double precision, on random shapes

#include "llama-self-extend-kernel.h"

#include "ops.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

struct test_case {
    int64_t   n_embd_k;
    int64_t   n_embd_v;
    int64_t   n_head_kv;
    int64_t   n_gqa;
    int64_t   n_tokens; // of a stream
    int64_t   n_far;
    int64_t   n_near;
    int64_t   n_stream;
    ggml_type type;
    bool      v_trans;
    bool      sinks;
    float     softcap;
    float     p_live; // of a cell to be seen by a token
    int       n_threads;
};

using values = std::vector<float>;

// fill a tensor with random values, rounded to its type; returns what it then holds
static values fill(ggml_tensor * t, std::mt19937 & rng) {
    std::normal_distribution<float> dist(0.0f, 1.0f);

    values x(ggml_nelements(t));
    for (auto & v : x) {
        v = dist(rng);
    }

    const int64_t n_row = t->ne[0];

    if (t->type == GGML_TYPE_F32) {
        std::copy(x.begin(), x.end(), (float *) t->data);
        return x;
    }

    ggml_quantize_chunk(t->type, x.data(), t->data, 0, x.size()/n_row, n_row, nullptr);
    ggml_get_type_traits(t->type)->to_float(t->data, x.data(), x.size());

    return x;
}

struct part {
    ggml_tensor * q;
    ggml_tensor * k;
    ggml_tensor * v;
    values        q_val;
    values        k_val;
    values        v_val;
    int64_t       n_kv;
};

static double run(const test_case & tc, const llama_self_extend_ops * ops, ggml_backend_t backend, uint32_t seed) {
    std::mt19937 rng(seed);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);

    ggml_context_ptr ctx { ggml_init({ size_t(256)*1024*1024, nullptr, false }) };

    const int64_t n_head   = tc.n_head_kv*tc.n_gqa;
    const int64_t n_tokens = tc.n_tokens*tc.n_stream;

    part parts[2];
    for (int i = 0; i < 2; ++i) {
        auto & p = parts[i];

        p.n_kv = i == 0 ? tc.n_far : tc.n_near;

        p.q = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, tc.n_embd_k, n_head, n_tokens);
        p.k = ggml_new_tensor_4d(ctx.get(), tc.type, tc.n_embd_k, tc.n_head_kv, p.n_kv, tc.n_stream);
        p.v = tc.v_trans ?
            ggml_new_tensor_4d(ctx.get(), tc.type, p.n_kv, tc.n_embd_v, tc.n_head_kv, tc.n_stream) :
            ggml_new_tensor_4d(ctx.get(), tc.type, tc.n_embd_v, tc.n_head_kv, p.n_kv, tc.n_stream);

        p.q_val = fill(p.q, rng);
        p.k_val = fill(p.k, rng);
        p.v_val = fill(p.v, rng);
    }

    ggml_tensor * mask  = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, tc.n_far + tc.n_near, tc.n_tokens, 1, tc.n_stream);
    ggml_tensor * sinks = tc.sinks ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, n_head) : nullptr;
    const values  sinks_val = sinks ? fill(sinks, rng) : values();

    std::vector<llama_self_extend_range> ranges(n_tokens);
    std::vector<std::vector<bool>>       live(n_tokens);

    const int64_t n_cells = tc.n_far + tc.n_near;

    for (int64_t t = 0; t < n_tokens; ++t) {
        const bool dead_far  = uniform(rng) < 0.2f;
        const bool dead_near = uniform(rng) < 0.2f;

        live[t].resize(n_cells);
        ranges[t] = {};

        int32_t n_live[2] = { 0, 0 };

        for (int64_t j = 0; j < n_cells; ++j) {
            const bool far = j < tc.n_far;

            live[t][j] = !(far ? dead_far : dead_near) && uniform(rng) < tc.p_live;

            ((ggml_fp16_t *) mask->data)[t*n_cells + j] = ggml_fp32_to_fp16(live[t][j] ? 0.0f : -INFINITY);

            if (live[t][j]) {
                int32_t & begin = far ? ranges[t].far_begin : ranges[t].near_begin;
                int32_t & end   = far ? ranges[t].far_end   : ranges[t].near_end;
                const int32_t cell = far ? j : j - tc.n_far;

                begin = end == 0 ? cell : begin;
                end   = cell + 1;
                n_live[far ? 0 : 1]++;
            }
        }

        ranges[t].far_dense  = n_live[0] == ranges[t].far_end  - ranges[t].far_begin;
        ranges[t].near_dense = n_live[1] == ranges[t].near_end - ranges[t].near_begin;
    }

    llama_self_extend_attn_params params;

    params.scale         = 1.0f/std::sqrt(float(tc.n_embd_k));
    params.logit_softcap = tc.softcap;
    params.ranges        = ranges.data();
    params.ops           = ops;

    // [n_kv, n_embd_v, n_head_kv, n_stream] -> the layout of llama_kv_cache::get_v()
    const auto v_view = [&](ggml_tensor * v) {
        return tc.v_trans ? ggml_permute(ctx.get(), v, 0, 2, 1, 3) : v;
    };

    ggml_tensor * out = llama_self_extend_attn_build(ctx.get(),
            parts[0].q, parts[0].k, v_view(parts[0].v),
            parts[1].q, parts[1].k, v_view(parts[1].v), mask, sinks, &params);

    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, out);

    const auto compute = [&](int n_threads) {
        ggml_backend_cpu_set_n_threads(backend, n_threads);

        const bool ok = ggml_backend_graph_compute(backend, gf) == GGML_STATUS_SUCCESS;

        const float * data = (const float *) out->data;
        return ok ? values(data, data + ggml_nelements(out)) : values();
    };

    // the number of threads must not show in the result
    if (compute(6) != compute(tc.n_threads)) {
        fprintf(stderr, "compute failed, or differs with the number of threads\n");
        return INFINITY;
    }

    double err_max = 0.0;

    for (int64_t t = 0; t < n_tokens; ++t) {
        const int64_t stream = t/tc.n_tokens;

        for (int64_t h = 0; h < n_head; ++h) {
            const int64_t hkv = h/tc.n_gqa;

            std::vector<double> score(n_cells, -INFINITY);
            double score_max = sinks ? sinks_val[h] : -INFINITY;

            for (int64_t j = 0; j < n_cells; ++j) {
                if (!live[t][j]) {
                    continue;
                }

                const auto &  p = parts[j < tc.n_far ? 0 : 1];
                const int64_t c = j < tc.n_far ? j : j - tc.n_far;

                double s = 0.0;
                for (int64_t d = 0; d < tc.n_embd_k; ++d) {
                    s += double(p.q_val[(t*n_head + h)*tc.n_embd_k + d])*p.k_val[((stream*p.n_kv + c)*tc.n_head_kv + hkv)*tc.n_embd_k + d];
                }

                s *= params.scale;
                s  = tc.softcap != 0.0f ? tc.softcap*std::tanh(s/tc.softcap) : s;

                score[j]  = s;
                score_max = std::max(score_max, s);
            }

            std::vector<double> expected(tc.n_embd_v, 0.0);
            double sum = sinks ? std::exp(sinks_val[h] - score_max) : 0.0;

            for (int64_t j = 0; j < n_cells; ++j) {
                if (!live[t][j]) {
                    continue;
                }

                const auto &  p = parts[j < tc.n_far ? 0 : 1];
                const int64_t c = j < tc.n_far ? j : j - tc.n_far;
                const double  w = std::exp(score[j] - score_max);

                sum += w;
                for (int64_t d = 0; d < tc.n_embd_v; ++d) {
                    expected[d] += w*(tc.v_trans ?
                            p.v_val[((stream*tc.n_head_kv + hkv)*tc.n_embd_v + d)*p.n_kv + c] :
                            p.v_val[((stream*p.n_kv + c)*tc.n_head_kv + hkv)*tc.n_embd_v + d]);
                }
            }

            for (int64_t d = 0; d < tc.n_embd_v; ++d) {
                const double e   = sum > 0.0 ? expected[d]/sum : 0.0;
                const double got = ((const float *) out->data)[(t*n_head + h)*tc.n_embd_v + d];
                const double err = std::abs(got - e);

                err_max = std::isnan(err) ? INFINITY : std::max(err_max, err);
            }
        }
    }

    return err_max;
}

int main() {
    // F32 sums of at most a few thousand values of order 1
    const double err_allowed = 5e-6;

    ggml_backend_ptr backend { ggml_backend_cpu_init() };

    std::mt19937 rng(1);
    const auto pick = [&](const auto & from) { return from[rng() % std::size(from)]; };

    const int64_t   n_embds  [] = { 32, 40, 64, 80, 96, 128, 192, 256 };
    const int64_t   n_gqas   [] = { 1, 2, 3, 4, 7, 8, 16 };
    const int64_t   n_tokenss[] = { 1, 2, 5, 17, 33, 70 };
    const int64_t   n_kvs    [] = { 1, 3, 64, 65, 127, 300, 900 };
    const ggml_type types    [] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q5_1 };
    const float     p_lives  [] = { 0.0f, 0.05f, 0.5f, 1.0f };

    int n_failed = 0;
    int n_run    = 0;

    for (int i = 0; i < 800; ++i) {
        test_case tc = {};

        tc.type      = pick(types);
        tc.n_embd_k  = pick(n_embds);
        tc.n_embd_v  = rng() % 4 == 0 ? pick(n_embds) : tc.n_embd_k;
        tc.n_head_kv = 1 + rng() % 3;
        tc.n_gqa     = pick(n_gqas);
        tc.n_tokens  = pick(n_tokenss);
        tc.n_far     = pick(n_kvs);
        tc.n_near    = pick(n_kvs);
        tc.n_stream  = 1 + rng() % 2;
        tc.sinks     = rng() % 3 == 0;
        tc.softcap   = rng() % 3 == 0 ? 5.0f : 0.0f;
        tc.p_live    = pick(p_lives);
        tc.n_threads = 1 + rng() % 3;
        tc.v_trans   = !ggml_is_quantized(tc.type) && rng() % 2 == 0;

        if (tc.n_embd_k % ggml_blck_size(tc.type) != 0 || tc.n_embd_v % ggml_blck_size(tc.type) != 0) {
            continue;
        }

        for (const auto * const * ops = llama_self_extend_ops_list(); *ops; ++ops) {
            const double err = run(tc, *ops, backend.get(), i);

            n_run++;

            if (!(err <= err_allowed)) {
                n_failed++;
                fprintf(stderr, "case %d, %s: error %g: n_embd %lld/%lld, heads %lld x %lld, tokens %lld, cells %lld + %lld, streams %lld, %s, "
                        "v_trans %d, sinks %d, softcap %g, live %g\n", i, (*ops)->name, err,
                        (long long) tc.n_embd_k, (long long) tc.n_embd_v, (long long) tc.n_head_kv, (long long) tc.n_gqa,
                        (long long) tc.n_tokens, (long long) tc.n_far, (long long) tc.n_near, (long long) tc.n_stream,
                        ggml_type_name(tc.type), tc.v_trans, tc.sinks, tc.softcap, tc.p_live);
            }
        }
    }

    for (const auto * const * ops = llama_self_extend_ops_list(); *ops; ++ops) {
        printf("%s ", (*ops)->name);
    }
    printf("\n%d cases, %d failures\n", n_run, n_failed);

    return n_failed == 0 ? 0 : 1;
}
