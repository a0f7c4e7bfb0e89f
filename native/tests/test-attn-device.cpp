// the fused attention on every device that offers it, against one softmax over both parts in double precision
//
//     test-attn-device [seconds] [only this case]
//
// A device may compile shaders for each kind of case, for minutes if it is one in software: no kind is begun after so many
// seconds. All cases of a kind do with the same ones.

#include "attn-case.h"

#include "attention/llama-self-extend-attn.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

static constexpr int SKIPPED = 77; // for CTest

//
// a case in the memory of a device
//

// the node with its sources, caches as llama_kv_cache has them. on the host first: of these the memory is copied
struct device_case {
    tensors mem;

    part parts[2];

    std::vector<std::vector<bool>> live; // of each token

    values sinks;

    ggml_context_ptr ctx { ggml_init({ 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }) };

    ggml_tensor * src[LLAMA_SELF_EXTEND_N_SRC] = {};
    ggml_tensor * out = nullptr; // nullptr if the device does not compute it

    std::vector<std::pair<ggml_tensor *, const std::vector<char> *>> memory; // on the device, and what it holds

    const float scale;

    device_case(const test_case & tc, ggml_backend_dev_t dev, uint32_t seed) : device_case(tc, dev, std::mt19937(seed)) {}

private:
    device_case(const test_case & tc, ggml_backend_dev_t dev, std::mt19937 rng) :
        parts { { mem, tc, tc.n_far, rng }, { mem, tc, tc.n_near, rng } }, scale(1.0f/std::sqrt(float(tc.n_embd_k))) {
        const int64_t n_tokens = tc.n_tokens*tc.n_stream;
        const int64_t n_cells  = tc.n_far + tc.n_near;

        std::vector<const ggml_tensor *> host;
        for (auto & p : parts) {
            for (int64_t i = 0; i < tc.n_stream*p.n_kv*tc.n_head_kv; ++i) {
                p.store(tc, i/tc.n_head_kv/p.n_kv, i/tc.n_head_kv%p.n_kv, i%tc.n_head_kv);
            }
            host.insert(host.end(), { p.q, p.k, p.v });
        }

        ggml_tensor * mask   = mem.add(GGML_TYPE_F16, n_cells, tc.n_tokens, 1, tc.n_stream);
        ggml_tensor * ranges = mem.add(GGML_TYPE_I32, LLAMA_SELF_EXTEND_N_RANGE*n_tokens + 2*tc.n_stream);
        host.insert(host.end(), { mask, ranges });

        int32_t * ends = (int32_t *) ranges->data + LLAMA_SELF_EXTEND_N_RANGE*n_tokens;
        std::fill_n(ends, 2*tc.n_stream, 0);

        for (int64_t t = 0; t < n_tokens; ++t) {
            llama_self_extend_range range = {};

            live.push_back(pick_live(tc, range, rng));
            memcpy((char *) ranges->data + t*sizeof(range), &range, sizeof(range));

            for (int64_t j = 0; j < n_cells; ++j) {
                ((ggml_fp16_t *) mask->data)[t*n_cells + j] = ggml_fp32_to_fp16(live[t][j] ? 0.0f : -INFINITY);
            }

            int32_t & end_far  = ends[t/tc.n_tokens];
            int32_t & end_near = ends[t/tc.n_tokens + tc.n_stream];

            end_far  = std::max(end_far,  GGML_PAD(range.far_end,  LLAMA_SELF_EXTEND_PAD_END));
            end_near = std::max(end_near, GGML_PAD(range.near_end, LLAMA_SELF_EXTEND_PAD_END));
        }

        // some that outweigh a thousand cells
        sinks = tc.sinks ? random_row(tc.n_head_kv*tc.n_gqa, 4.0f, rng) : values(tc.n_head_kv*tc.n_gqa, -INFINITY);
        if (tc.sinks) {
            host.push_back(mem.add(GGML_TYPE_F32, sinks.size()));
            memcpy(mem.memory.back().data(), sinks.data(), mem.memory.back().size());
        }

        // sources and memory are in the same order
        for (size_t i = 0; i < host.size(); ++i) {
            const ggml_tensor * t = host[i];
            const auto & bytes = mem.memory[i];

            ggml_tensor * base = ggml_new_tensor_1d(ctx.get(), t->type, bytes.size()/ggml_type_size(t->type)*ggml_blck_size(t->type));

            memory.emplace_back(base, &bytes);
            src[i < LLAMA_SELF_EXTEND_SRC_AUX_1 ? i : size_t(LLAMA_SELF_EXTEND_SRC_SINKS)] = ggml_view_4d(ctx.get(), base,
                    t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], (const char *) t->data - bytes.data());
        }

        out = llama_self_extend_attn_build_device(ctx.get(), dev, src, scale, tc.softcap);
    }
};

// Memory of the device for one case after another. What has become too small stays until the end: Mesa 22's software
// driver for Vulkan corrupts its heap when a buffer is freed that a shader has used, be it ggml's own attention.
struct device_memory {
    std::vector<ggml_backend_buffer_ptr> buffers;

    // all tensors of the context. returns false if there is not enough
    bool alloc(ggml_context * ctx, ggml_backend_t backend) {
        const auto buft = ggml_backend_get_default_buffer_type(backend);

        size_t size = 0;
        for (auto * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            size += t->view_src ? 0 : GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), ggml_backend_buft_get_alignment(buft));
        }
        if (buffers.empty() || ggml_backend_buffer_get_size(buffers.back().get()) < size) {
            buffers.emplace_back(ggml_backend_alloc_buffer(backend, 2*size));
        }
        if (!buffers.back()) {
            return false;
        }
        ggml_backend_buffer_clear(buffers.back().get(), 0xff);

        ggml_tallocr tensors = ggml_tallocr_new(buffers.back().get());

        bool res = true;
        for (auto * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            res = res && (t->view_src ? ggml_backend_view_init(t) : ggml_tallocr_alloc(&tensors, t)) == GGML_STATUS_SUCCESS;
        }
        return res;
    }
};

// empty if it failed
static values compute(device_case & dc, ggml_backend_t backend, device_memory & memory) {
    ggml_cgraph * gf = ggml_new_graph(dc.ctx.get());
    ggml_build_forward_expand(gf, dc.out);

    if (!memory.alloc(dc.ctx.get(), backend)) {
        return {};
    }

    for (const auto & [base, bytes] : dc.memory) {
        ggml_backend_tensor_set(base, bytes->data(), 0, bytes->size());
    }

    if (!ggml_backend_supports_op(backend, dc.out->view_src) || ggml_backend_graph_compute(backend, gf) != GGML_STATUS_SUCCESS) {
        return {};
    }

    values res(ggml_nelements(dc.out));
    ggml_backend_tensor_get(dc.out, res.data(), 0, ggml_nbytes(dc.out));
    return res;
}

//
// what rounding may do
//
// Devices compute with F16 where they can, and multiply quantized keys with queries of eight bits. Each rounding is taken
// for independent of the others and evenly spread, so their squares add up:
//
// - a score: Q and K are rounded, to BF16 if the cache is; with a quantized K each block of 32 of Q to 254 steps
// - a weight, a value and their product are rounded, and a weight that is far below the largest one to a fixed step
// - a sum is rounded once for each cell: it is about as large as the result, or as a random walk to it
//

static double square(double x) {
    return x*x;
}

// standard deviation of a rounding to so many bits, of a number of size 1
static double rounding(int n_bits) {
    return std::exp2(-n_bits)/std::sqrt(3.0);
}

// standard deviations of one row of the result
static std::vector<double> spread(const test_case & tc, const device_case & dc, const exact_row & exact, int64_t t, int64_t h) {
    const int64_t n_head = tc.n_head_kv*tc.n_gqa;

    const double r      = rounding(11);
    const double r_q    = rounding(tc.type_k == GGML_TYPE_BF16 ? 8 : 11);
    const double r_int8 = rounding(0)/254.0;
    const double r_step = rounding(25)*8.0; // the largest weight may be as small as 1/8, and steps are 2^-24 at the least
    const double w_max  = *std::max_element(exact.weights.begin(), exact.weights.end());

    std::vector<double> by_score(tc.n_embd_v); // squares
    std::vector<double> by_weight(tc.n_embd_v);
    std::vector<double> by_step(tc.n_embd_v);

    int64_t n_live = 0;

    for (int64_t j = 0; j < tc.n_far + tc.n_near; ++j) {
        const double w = exact.weights[j];
        if (w == 0.0) {
            continue;
        }
        n_live++;

        const auto & p = dc.parts[j < tc.n_far ? 0 : 1];
        const auto   i = p.index(tc, t/tc.n_tokens, j < tc.n_far ? j : j - tc.n_far, h/tc.n_gqa);

        const auto & q = p.q_val[t*n_head + h];
        const auto & k = p.k_val[i];
        const auto & v = p.v_val[i];

        double score = 0.0;
        for (int64_t d0 = 0; d0 < tc.n_embd_k; d0 += 32) {
            double q_max = 0.0;
            double kk    = 0.0;
            for (int64_t d = d0; d < std::min(d0 + 32, tc.n_embd_k); ++d) {
                score += 2.0*square(r_q*q[d]*k[d]);
                q_max  = std::max<double>(q_max, std::abs(q[d]));
                kk    += double(k[d])*k[d];
            }
            score += ggml_is_quantized(tc.type_k) ? kk*square(r_int8*q_max) : 0.0;
        }
        score *= dc.scale*dc.scale;

        for (int64_t d = 0; d < tc.n_embd_v; ++d) {
            by_score [d] += score*square(w*(v[d] - exact.values[d]));
            by_weight[d] += square(w*v[d]);
            by_step  [d] += square(v[d]);
        }
    }

    std::vector<double> res(tc.n_embd_v);
    for (int64_t d = 0; d < tc.n_embd_v; ++d) {
        const double sum = std::abs(exact.values[d]) + std::sqrt(by_weight[d]);

        res[d] = std::sqrt(by_score[d] + square(r)*(3.0*by_weight[d] + n_live*square(sum)) + square(r_step*w_max)*by_step[d]);
    }
    return res;
}

static constexpr double N_SPREAD  = 6.0;
static constexpr double ERR_FLOOR = 1e-5; // F32

// the largest error, in units of what is allowed
static double check(const test_case & tc, const device_case & dc, const values & res) {
    const int64_t n_head = tc.n_head_kv*tc.n_gqa;

    double err_max = res.empty() ? INFINITY : 0.0;

    for (int64_t i = 0; i < int64_t(res.size()); i += tc.n_embd_v) {
        const int64_t t = i/tc.n_embd_v/n_head;
        const int64_t h = i/tc.n_embd_v%n_head;

        const exact_row           exact   = expect(tc, dc.parts, dc.live[t], t, h, dc.scale, dc.sinks[h]);
        const std::vector<double> allowed = spread(tc, dc, exact, t, h);

        for (int64_t d = 0; d < tc.n_embd_v; ++d) {
            const double err = std::abs(res[i + d] - exact.values[d])/(N_SPREAD*allowed[d] + ERR_FLOOR);

            err_max = std::isnan(err) ? INFINITY : std::max(err_max, err);
        }
    }
    return err_max;
}

//
// cases
//

static constexpr int N_KINDS = 60;
static constexpr int N_CASES = 6; // of a kind

// small ones first, which a device in software gets to: a token of grouped heads, many tokens, and one of heads on their own
struct kind {
    int64_t   n_embd;
    int64_t   n_head_kv;
    int64_t   n_gqa;
    int64_t   n_tokens;
    ggml_type type;
    float     softcap;
};

static const kind first_kinds[] = {
    { 64, 2, 4,  1, GGML_TYPE_F16,  0.0f },
    { 64, 2, 3, 70, GGML_TYPE_F16,  0.0f },
    { 64, 3, 1,  1, GGML_TYPE_Q8_0, 0.0f },
    { 64, 1, 9,  3, GGML_TYPE_F32,  5.0f },
};

// what shaders may be chosen by; every third kind has a quantized cache
static test_case random_kind(int i, std::mt19937 & rng) {
    if (i < int(std::size(first_kinds))) {
        const kind & k = first_kinds[i];

        test_case tc = {};

        tc.n_embd_k  = tc.n_embd_v = k.n_embd;
        tc.n_head_kv = k.n_head_kv;
        tc.n_gqa     = k.n_gqa;
        tc.n_tokens  = k.n_tokens;
        tc.type_k    = tc.type_v = k.type;
        tc.softcap   = k.softcap;

        return tc;
    }

    const auto pick   = [&](const auto & from) { return from[rng() % std::size(from)]; };
    const auto chance = [&](int n) { return rng() % n == 0; };

    const int64_t   n_embds  [] = { 64, 64, 80, 96, 112, 128, 128, 256 };
    const int64_t   n_tokenss[] = { 1, 1, 2, 3, 7, 8, 9, 16, 33, 64, 70, 130 };
    const ggml_type types    [] = { GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_BF16 };
    const ggml_type types_q  [] = { GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL };

    test_case tc = {};

    tc.n_embd_k  = pick(n_embds);
    tc.n_embd_v  = chance(8) ? pick(n_embds) : tc.n_embd_k;
    tc.n_head_kv = 1 + rng() % 4;
    tc.n_gqa     = 1 + rng() % 16;
    tc.n_tokens  = pick(n_tokenss);
    tc.softcap   = chance(4) ? 5.0f : 0.0f;

    const auto type = [&](int64_t n_embd) {
        const ggml_type res = i % 3 == 2 ? pick(types_q) : pick(types);
        return n_embd % ggml_blck_size(res) == 0 ? res : GGML_TYPE_F16;
    };

    tc.type_k = type(tc.n_embd_k);
    tc.type_v = chance(8) || tc.n_embd_v % ggml_blck_size(tc.type_k) != 0 ? type(tc.n_embd_v) : tc.type_k;

    return tc;
}

static test_case random_case(test_case tc, std::mt19937 & rng) {
    const auto pick   = [&](const auto & from) { return from[rng() % std::size(from)]; };
    const auto chance = [&](int n) { return rng() % n == 0; };

    const int64_t  n_kvs  [] = { 256, 256, 512, 768, 1280, 1792, 4096 };
    const float    p_lives[] = { 0.02f, 0.5f, 1.0f };
    const hidden_t hiddens[] = { HIDDEN_NONE, HIDDEN_NONE, HIDDEN_NONE, HIDDEN_FAR, HIDDEN_NEAR };

    // no more than what a device in software does in a second
    const auto n_products = [&] {
        return double(tc.n_head_kv*tc.n_gqa*tc.n_tokens)*tc.n_stream*(tc.n_far + tc.n_near)*(tc.n_embd_k + tc.n_embd_v);
    };
    do {
        tc.n_stream = 1 + rng() % 3;
        tc.n_far    = pick(n_kvs);
        tc.n_near   = pick(n_kvs);
    } while (n_products() > 200e6 && tc.n_stream*(tc.n_far + tc.n_near) > 1024);

    // llama.cpp rounds the number of cells up to 256
    tc.n_far -= chance(20) ? 1 + rng() % 100 : 0;

    tc.n_unused = chance(2) ? 256 : 0;
    tc.v_trans  = !ggml_is_quantized(tc.type_v) && chance(20);
    tc.sinks    = chance(2);
    tc.q_size   = chance(4) ? 8.0f : 1.0f;
    tc.runs     = chance(2);
    tc.p_live   = pick(p_lives);
    tc.hidden   = pick(hiddens);

    return tc;
}

static std::string describe(const test_case & tc) {
    char text[400];
    snprintf(text, sizeof(text), "n_embd %d/%d, heads %d x %d, tokens %d x %d, cells %d + %d (%d unused), %s/%s, v_trans %d, sinks %d, softcap %g, "
            "q_size %g, runs %d, live %g, hidden %d", int(tc.n_embd_k), int(tc.n_embd_v), int(tc.n_head_kv), int(tc.n_gqa), int(tc.n_tokens), int(tc.n_stream),
            int(tc.n_far), int(tc.n_near), int(tc.n_unused), ggml_type_name(tc.type_k), ggml_type_name(tc.type_v), tc.v_trans, tc.sinks, tc.softcap,
            tc.q_size, tc.runs, tc.p_live, tc.hidden);
    return text;
}

// What the device refuses in a case: with something plain in its place it would compute it.
static std::string reason(const test_case & tc, ggml_backend_dev_t dev) {
    const auto accepts = [&](auto change) {
        test_case plain = tc;
        change(plain);
        return device_case(plain, dev, 0).out != nullptr;
    };

    if (accepts([](test_case & c) { c.v_trans = false; })) {
        return "V is transposed";
    }
    if (accepts([](test_case & c) { c.n_far = GGML_PAD(c.n_far, 256); })) {
        return "a number of cells that is not a multiple of 256";
    }
    if (accepts([](test_case & c) { c.type_k = c.type_v = GGML_TYPE_F16; })) {
        return std::string("K and V of ") + ggml_type_name(tc.type_k) + " and " + ggml_type_name(tc.type_v);
    }
    if (accepts([](test_case & c) { c.n_embd_k = c.n_embd_v = 128; c.type_k = c.type_v = GGML_TYPE_F16; })) {
        return "heads of " + std::to_string(tc.n_embd_k) + " and " + std::to_string(tc.n_embd_v) +
            " with K and V of " + ggml_type_name(tc.type_k) + " and " + ggml_type_name(tc.type_v);
    }
    return "more than one of these, or others";
}

// the number of failures
static int test_device(ggml_backend_dev_t dev, double seconds, int only) {
    const ggml_backend_ptr backend { ggml_backend_dev_init(dev, nullptr) };

    const int64_t t_end = ggml_time_us() + int64_t(1e6*seconds);

    device_memory memory;

    std::map<std::string, int> refused;

    int    n_kinds  = 0;
    int    n_cases  = 0;
    int    n_run    = 0;
    int    n_failed = 0;
    double err_max  = 0.0;

    for (int i = 0; i < N_KINDS*N_CASES; ++i) {
        if (only >= 0 && i != only) {
            continue;
        }
        if (i % N_CASES == 0 || only >= 0) {
            if (ggml_time_us() > t_end) {
                break;
            }
            n_kinds++;
        }
        n_cases++;

        std::mt19937 rng_kind(i/N_CASES);
        std::mt19937 rng     (i);

        const test_case tc = random_case(random_kind(i/N_CASES, rng_kind), rng);

        device_case dc(tc, dev, i);
        if (!dc.out) {
            refused[reason(tc, dev)]++;
            continue;
        }
        n_run++;

        const double err = check(tc, dc, compute(dc, backend.get(), memory));
        if (!(err <= 1.0)) {
            n_failed++;
            fprintf(stderr, "case %d: error %.3g of what is allowed: %s\n", i, err, describe(tc).c_str());
        }
        err_max = std::max(err_max, err);
    }

    printf("%s (%s): %d of %d kinds, %d cases, %d failures, the largest error is %.2f of what is allowed; %d refused\n",
            ggml_backend_dev_name(dev), ggml_backend_dev_description(dev), n_kinds, N_KINDS, n_run, n_failed, err_max, n_cases - n_run);
    for (const auto & [what, n] : refused) {
        printf("    %d: %s\n", n, what.c_str());
    }
    return n_run == 0 ? 1 : n_failed;
}

int main(int argc, char ** argv) {
    const double seconds = argc > 1 ? atof(argv[1]) : 30.0;
    const int    only    = argc > 2 ? atoi(argv[2]) : -1;

    int n_devices = 0;
    int n_failed  = 0;

    ggml_time_init();

    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);

        if (ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), LLAMA_SELF_EXTEND_ATTN_PROC)) {
            n_devices++;
            n_failed += test_device(dev, seconds, only);
        }
    }

    if (n_devices == 0) {
        printf("no device offers the fused attention\n");
        return SKIPPED;
    }
    return n_failed == 0 ? 0 : 1;
}
