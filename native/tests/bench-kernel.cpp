// the fused kernel against ggml's own attention, flash and not, and against what the machine can do in plain loops
//
// bench-kernel [n_threads [n_reps [shape [method]]]]
//
// n_threads  all cores if not given
// n_reps     0: one layer is computed once, and nothing is timed or printed; for counting instructions
// shape      only those whose line begins with this: "SmolLM2-135M f16 4096 1"
// method     only this one: ours, ours-v-trans, flash, not-flash; to be counted, not timed

#include "attention/cpu/llama-self-extend-attn-cpu.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "vec.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

static constexpr int64_t GA_W = 1024;

struct shape {
    const char * name;
    int64_t      n_embd; // of a head
    int64_t      n_head_kv;
    int64_t      n_gqa;
    int64_t      depth;
    int64_t      n_tokens;
    ggml_type    type;

    std::string label() const {
        return std::string(name) + " " + ggml_type_name(type) + " " + std::to_string(depth) + " " + std::to_string(n_tokens);
    }
};

static double seconds(const std::function<void()> & f) {
    const auto t0 = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
}

static double parallel(int n_threads, const std::function<void()> & f) {
    return seconds([&] {
        std::vector<std::thread> threads;
        for (int i = 0; i < n_threads; ++i) {
            threads.emplace_back(f);
        }
        for (auto & thread : threads) {
            thread.join();
        }
    });
}

//
// the machine
//

static volatile float sink;

// GFLOP/s of F32 multiply-adds on registers
static double peak_fma(int n_threads) {
    constexpr int     N      = 12;
    constexpr int64_t n_iter = 20000000;

    const double t = parallel(n_threads, [] {
#if defined(GGML_SIMD)
        GGML_F32_VEC acc[N];
        for (int i = 0; i < N; ++i) {
            acc[i] = GGML_F32_VEC_SET1(float(i));
        }
        GGML_F32_VEC a = GGML_F32_VEC_SET1(1e-3f);
        GGML_F32_VEC b = GGML_F32_VEC_SET1(1e-3f);
        for (int64_t k = 0; k < n_iter; ++k) {
            for (int i = 0; i < N; ++i) {
                acc[i] = GGML_F32_VEC_FMA(acc[i], a, b);
            }
        }
        float out[N][GGML_F32_EPR];
        for (int i = 0; i < N; ++i) {
            GGML_F32_VEC_STORE(out[i], acc[i]);
            sink = out[i][0];
        }
#endif
    });

#if defined(GGML_SIMD)
    return n_threads*double(n_iter)*N*GGML_F32_EPR*2/t*1e-9;
#else
    return 0.0*t;
#endif
}

// GB/s of reads from memory
static double peak_read(int n_threads) {
    static const std::vector<int64_t> data(size_t(512)*1024*1024/sizeof(int64_t), 1);

    std::vector<double> res;
    for (int rep = 0; rep < 3; ++rep) {
        res.push_back(n_threads*double(data.size())*sizeof(int64_t)*1e-9/parallel(n_threads, [] {
            int64_t sum[32] = { 0 };
            for (size_t i = 0; i < data.size(); i += 32) {
                for (int j = 0; j < 32; ++j) {
                    sum[j] += data[i + j];
                }
            }
            int64_t all = 0;
            for (const auto s : sum) {
                all += s;
            }
            sink = float(all);
        }));
    }
    return *std::max_element(res.begin(), res.end());
}

//
// the attention of some layers, so that together their caches do not fit into any level of cache
//

static ggml_tensor * tensor(ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2) {
    ggml_tensor * res = ggml_new_tensor_3d(ctx, type, ne0, ne1, ne2);

    constexpr int64_t n_distinct = 201;

    std::vector<float> row(ne0);
    for (int64_t i = 0; i < ggml_nrows(res); ++i) {
        char * dst = (char *) res->data + i*res->nb[1];

        if (i >= n_distinct) {
            memcpy(dst, dst - n_distinct*res->nb[1], res->nb[1]);
            continue;
        }
        for (int64_t j = 0; j < ne0; ++j) {
            row[j] = float((i*131 + j*31)%n_distinct - 100)*0.01f;
        }
        ggml_get_type_traits_cpu(type)->from_float(row.data(), dst, ne0);
    }
    return res;
}

static ggml_tensor * permute(ggml_context * ctx, ggml_tensor * t) {
    return ggml_permute(ctx, t, 0, 2, 1, 3);
}

struct problem {
    ggml_context_ptr ctx;
    ggml_cgraph *    gf;

    std::vector<llama_self_extend_range>           ranges;
    std::unique_ptr<llama_self_extend_attn_params> params;
};

enum method { OURS, OURS_V_TRANS, FLASH, NOT_FLASH, N_METHODS };

static const char * method_name[] = { "ours", "ours-v-trans", "flash", "not-flash" };

static problem make(const shape & sh, method m, int64_t n_layer) {
    const bool v_trans = m == OURS_V_TRANS || m == NOT_FLASH;

    const int64_t n_pad  = 256;
    const int64_t n_kv   = (sh.depth + sh.n_tokens + n_pad - 1)/n_pad*n_pad;
    const int64_t n_near = (GA_W + sh.n_tokens + n_pad - 1)/n_pad*n_pad;
    const int64_t n_head = sh.n_head_kv*sh.n_gqa;

    const auto cells_size = [&](int64_t n) { return n_layer*(2*ggml_row_size(sh.type, sh.n_embd)*sh.n_head_kv*n + 1024); };

    // of one layer, the products of scores are kept
    const size_t size = cells_size(n_kv + n_near) + size_t(16)*(n_kv + n_near)*sh.n_tokens +
        n_layer*sh.n_tokens*n_head*(sh.n_embd*24 + 4*n_kv*(m == NOT_FLASH ? 2 : 0)) + size_t(64)*1024*1024;

    problem pr;
    pr.ctx.reset(ggml_init({ size, nullptr, false }));
    auto * ctx = pr.ctx.get();

    const bool ours = m == OURS || m == OURS_V_TRANS;

    // the token at depth + t sees the cells up to itself. in the near part cell j has the position depth - GA_W + j
    const int64_t n_mask = ours ? n_kv + n_near : n_kv;
    ggml_tensor * mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n_mask, sh.n_tokens, 1, 1);

    pr.ranges.resize(sh.n_tokens);
    for (int64_t t = 0; t < sh.n_tokens; ++t) {
        const int64_t pos  = sh.depth + t;
        const int64_t far1 = std::max<int64_t>(0, pos - GA_W + 1);
        const int64_t near0 = sh.depth < GA_W ? std::max<int64_t>(0, pos - GA_W + 1) : t + 1;
        const int64_t near1 = sh.depth < GA_W ? pos + 1 : GA_W + t + 1;

        pr.ranges[t].far_end    = far1;
        pr.ranges[t].near_begin = near0;
        pr.ranges[t].near_end   = near1;
        pr.ranges[t].far_dense  = 1;
        pr.ranges[t].near_dense = 1;

        auto * row = (ggml_fp16_t *) mask->data + t*n_mask;
        for (int64_t j = 0; j < n_mask; ++j) {
            const bool live = !ours ? j <= pos : j < n_kv ? j < far1 : j - n_kv >= near0 && j - n_kv < near1;

            row[j] = ggml_fp32_to_fp16(live ? 0.0f : -INFINITY);
        }
    }

    const float scale = 1.0f/std::sqrt(float(sh.n_embd));

    pr.params = std::make_unique<llama_self_extend_attn_params>();

    pr.params->ranges = pr.ranges.data();

    pr.gf = ggml_new_graph_custom(ctx, 1024, false);

    ggml_tensor * q = tensor(ctx, GGML_TYPE_F32, sh.n_embd, n_head, sh.n_tokens);

    const auto new_k = [&](int64_t n) { return tensor(ctx, sh.type, sh.n_embd, sh.n_head_kv, n); };
    const auto new_v = [&](int64_t n) {
        return v_trans ? permute(ctx, tensor(ctx, sh.type, n, sh.n_embd, sh.n_head_kv)) : new_k(n);
    };

    for (int64_t il = 0; il < n_layer; ++il) {
        ggml_tensor * k = new_k(n_kv);
        ggml_tensor * v = new_v(n_kv);
        ggml_tensor * cur;

        if (ours) {
            ggml_tensor * const src[] = { q, k, v, q, new_k(n_near), new_v(n_near), mask, nullptr, nullptr, nullptr };

            cur = llama_self_extend_attn_build(ctx, src, scale, 0.0f, pr.params.get());
        } else if (m == FLASH) {
            cur = ggml_flash_attn_ext(ctx, permute(ctx, q), permute(ctx, k), permute(ctx, v), mask, scale, 0.0f, 0.0f);
            ggml_prec_set_acc(cur, GGML_PREC_F32);
        } else {
            ggml_tensor * kq = ggml_mul_mat(ctx, permute(ctx, k), permute(ctx, q));
            kq  = ggml_soft_max_ext(ctx, kq, mask, scale, 0.0f);
            cur = ggml_cont(ctx, permute(ctx, ggml_mul_mat(ctx, permute(ctx, v), kq)));
        }
        ggml_build_forward_expand(pr.gf, cur);
    }

    return pr;
}

int main(int argc, char ** argv) {
    const int         n_threads = argc > 1 ? atoi(argv[1]) : std::max(1u, std::thread::hardware_concurrency());
    const int         n_reps    = argc > 2 ? atoi(argv[2]) : 7;
    const std::string only      = argc > 3 ? argv[3] : "";
    const char *      only_m    = argc > 4 ? argv[4] : nullptr;

    const auto is_wanted = [&](const char * name) { return !only_m || strcmp(only_m, name) == 0; };

    const bool timed = n_reps > 0;

    if (n_threads < 1 || n_reps < 0 || (!timed && strcmp(argv[2], "0") != 0) || (timed && only_m) ||
            std::none_of(std::begin(method_name), std::end(method_name), is_wanted)) {
        fprintf(stderr, "usage: bench-kernel [n_threads [n_reps [shape]]]\n"
                        "       bench-kernel n_threads 0 shape [ours|ours-v-trans|flash|not-flash]\n");
        return 2;
    }

    std::vector<shape> shapes;
    for (const int64_t n_tokens : { 1, 512 }) {
        for (const int64_t depth : { 0, 4096, 16384 }) {
            shapes.push_back({ "SmolLM2-135M", 64, 3, 3, depth, n_tokens, GGML_TYPE_F16 });
            shapes.push_back({ "SmolLM2-135M", 64, 3, 3, depth, n_tokens, GGML_TYPE_Q8_0 });
            shapes.push_back({ "Gemma 3 270M", 256, 1, 4, depth, n_tokens, GGML_TYPE_F16 });
            shapes.push_back({ "Llama 3 8B", 128, 8, 4, depth, n_tokens, GGML_TYPE_F16 });
        }
    }

    const double fma  = timed ? peak_fma (n_threads) : 0.0;
    const double read = timed ? peak_read(n_threads) : 0.0;

    if (timed) {
        printf("%d threads: %.0f GFLOP/s of F32 multiply-adds, %.0f GB/s of reads\n", n_threads, fma, read);
        printf("medians of %d, in milliseconds a layer; ratio: the faster of ggml's two over ours\n\n", n_reps);
        printf("%-14s %-5s %6s %6s | %8s %8s %8s %8s | %6s %7s\n", "shape", "type", "depth", "tokens", "ours", "V trans", "flash", "not", "ratio", "of peak");
    }

    ggml_backend_ptr backend { ggml_backend_cpu_init() };
    ggml_backend_cpu_set_n_threads(backend.get(), n_threads);

    for (const auto & sh : shapes) {
        if (sh.label().compare(0, only.size(), only) != 0) {
            continue;
        }

        const double  bytes   = 2.0*ggml_row_size(sh.type, sh.n_embd)*sh.n_head_kv*(sh.depth + sh.n_tokens);
        const double  flops   = 4.0*sh.n_embd*sh.n_head_kv*sh.n_gqa*sh.n_tokens*(sh.depth + 0.5*(sh.n_tokens + 1));
        const int64_t n_layer = sh.n_tokens > 1 || !timed ? 1 : std::clamp<int64_t>(256e6/bytes, 4, 30);

        std::vector<double> times[N_METHODS];
        std::vector<problem> problems;

        for (int m = 0; m < N_METHODS; ++m) {
            // a quantized V is not cached transposed
            const bool none = ggml_is_quantized(sh.type) && (m == OURS_V_TRANS || m == NOT_FLASH);

            problems.push_back(none || !is_wanted(method_name[m]) ? problem {} : make(sh, method(m), n_layer));
        }
        for (int rep = -1; rep < n_reps; ++rep) {
            for (int m = 0; m < N_METHODS; ++m) {
                if (!problems[m].gf) {
                    continue;
                }
                const double t = seconds([&] {
                    if (ggml_backend_graph_compute(backend.get(), problems[m].gf) != GGML_STATUS_SUCCESS) {
                        fprintf(stderr, "%s failed\n", method_name[m]);
                        exit(1);
                    }
                });
                if (rep >= 0) {
                    times[m].push_back(t*1e3/n_layer);
                }
            }
        }

        if (!timed) {
            continue;
        }

        double median[N_METHODS];
        for (int m = 0; m < N_METHODS; ++m) {
            std::sort(times[m].begin(), times[m].end());
            median[m] = times[m].empty() ? INFINITY : times[m][times[m].size()/2];
        }

        const double ours = std::min(median[OURS], median[OURS_V_TRANS]);

        // what the work needs at the least, over what it took
        const double least = std::max(bytes*1e-6/read, flops*1e-6/fma);

        printf("%-14s %-5s %6lld %6lld | %8.3f %8.3f %8.3f %8.3f | %5.2fx %6.0f%%\n", sh.name, ggml_type_name(sh.type),
                (long long) sh.depth, (long long) sh.n_tokens, median[OURS], median[OURS_V_TRANS], median[FLASH], median[NOT_FLASH],
                std::min(median[FLASH], median[NOT_FLASH])/ours, 100*least/ours);
        fflush(stdout);
    }

    return 0;
}
