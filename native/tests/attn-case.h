#pragma once

#include "attention/llama-self-extend-attn.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

//
// random attention over two parts, and one softmax over both in double precision
//

// what a cache may hold that must not spoil the tokens that do not see it
enum bad_t { BAD_NONE, BAD_V_INF, BAD_K_NAN };

// a part of which no token sees anything
enum hidden_t { HIDDEN_NONE, HIDDEN_FAR, HIDDEN_NEAR };

struct test_case {
    int64_t   n_embd_k;
    int64_t   n_embd_v;
    int64_t   n_head_kv;
    int64_t   n_gqa;
    int64_t   n_tokens; // of a stream
    int64_t   n_far;
    int64_t   n_near;
    int64_t   n_unused; // cells after these
    int64_t   n_stream;
    ggml_type type_k;
    ggml_type type_v;
    bool      v_trans;
    bool      sinks;
    float     softcap;
    float     q_size;
    bool      runs;   // the cells that a token sees follow one another
    float     p_live; // otherwise: of a cell to be seen
    hidden_t  hidden;
    bool      store;  // the kernel stores the tokens' own cells, if it can
    bad_t     bad;
    int       n_threads;
};

using values = std::vector<float>;

//
// tensors, each in memory of its own that ends where it ends, and is NaN where nothing has been stored
//

struct tensors {
    ggml_context_ptr ctx { ggml_init({ 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }) };

    std::vector<std::vector<char>> memory;

    void alloc(ggml_tensor * t, size_t offs = 0) {
        memory.emplace_back(offs + ggml_nbytes(t), char(0xff));
        t->data = memory.back().data() + offs;
    }

    // strides in bytes
    ggml_tensor * add(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, size_t nb1, size_t nb2, size_t nb3, size_t offs) {
        ggml_tensor * t = ggml_new_tensor_4d(ctx.get(), type, ne0, ne1, ne2, ne3);

        t->nb[1] = nb1;
        t->nb[2] = nb2;
        t->nb[3] = nb3;
        alloc(t, offs);

        return t;
    }

    ggml_tensor * add(ggml_type type, int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1, int64_t ne3 = 1) {
        ggml_tensor * t = ggml_new_tensor_4d(ctx.get(), type, ne0, ne1, ne2, ne3);
        alloc(t);
        return t;
    }
};

inline values random_row(int64_t n, float size, std::mt19937 & rng) {
    std::uniform_real_distribution<float> dist(-1.7f*size, 1.7f*size); // variance about 1, and quickly drawn

    values x(n);
    for (auto & v : x) {
        v = dist(rng);
    }
    return x;
}

// a row as its type stores it; x becomes what is then read
inline std::vector<char> stored(ggml_type type, values & x) {
    std::vector<char> res(ggml_row_size(type, x.size()));

    ggml_get_type_traits_cpu(type)->from_float(x.data(), res.data(), x.size());
    if (type == GGML_TYPE_F32) {
        memcpy(x.data(), res.data(), res.size());
    } else {
        ggml_get_type_traits(type)->to_float(res.data(), x.data(), x.size());
    }
    return res;
}

// one of the two sets of Q, K and V. caches as llama_kv_cache has them: with cells that are not in use, and more streams
struct part {
    ggml_tensor * q;
    ggml_tensor * k;
    ggml_tensor * v; // of the shape of llama_kv_cache::get_v()

    int64_t n_kv;

    std::vector<values> q_val; // [n_tokens*n_head]
    std::vector<values> k_val; // [n_stream*n_kv*n_head_kv]
    std::vector<values> v_val;

    part(tensors & mem, const test_case & tc, int64_t n_kv, std::mt19937 & rng) : n_kv(n_kv) {
        const int64_t n_head   = tc.n_head_kv*tc.n_gqa;
        const int64_t n_tokens = tc.n_tokens*tc.n_stream;
        const int64_t n_cells  = n_kv + tc.n_unused;
        const int64_t stream0  = rng() % 2;

        const size_t nb_q = (tc.n_embd_k*n_head + (rng() % 2)*16)*sizeof(float); // of a fused Q, K and V
        const size_t nb_k = ggml_row_size(tc.type_k, tc.n_embd_k);
        const size_t nb_v = ggml_row_size(tc.type_v, tc.v_trans ? n_cells : tc.n_embd_v);
        const size_t nb_s = nb_v*tc.n_head_kv*(tc.v_trans ? tc.n_embd_v : n_cells);

        q = mem.add(GGML_TYPE_F32, tc.n_embd_k, n_head, n_tokens, 1, tc.n_embd_k*sizeof(float), nb_q, nb_q*n_tokens, 0);
        k = mem.add(tc.type_k, tc.n_embd_k, tc.n_head_kv, n_kv, tc.n_stream,
                nb_k, nb_k*tc.n_head_kv, nb_k*tc.n_head_kv*n_cells, stream0*nb_k*tc.n_head_kv*n_cells);
        v = tc.v_trans ?
            mem.add(tc.type_v, n_kv, tc.n_head_kv, tc.n_embd_v, tc.n_stream, nb_v*tc.n_embd_v, nb_v, nb_s, stream0*nb_s) :
            mem.add(tc.type_v, tc.n_embd_v, tc.n_head_kv, n_kv, tc.n_stream, nb_v, nb_v*tc.n_head_kv, nb_s, stream0*nb_s);

        for (int64_t i = 0; i < n_tokens*n_head; ++i) {
            q_val.push_back(random_row(tc.n_embd_k, tc.q_size, rng));
            memcpy((char *) q->data + i%n_head*q->nb[1] + i/n_head*q->nb[2], q_val[i].data(), q->nb[1]);
        }
        for (int64_t i = 0; i < tc.n_stream*n_kv*tc.n_head_kv; ++i) {
            k_val.push_back(random_row(tc.n_embd_k, 1.0f, rng));
            v_val.push_back(random_row(tc.n_embd_v, 1.0f, rng));
        }
    }

    // in k_val and v_val
    int64_t index(const test_case & tc, int64_t stream, int64_t cell, int64_t head_kv) const {
        return (stream*n_kv + cell)*tc.n_head_kv + head_kv;
    }

    void store(const test_case & tc, int64_t stream, int64_t cell, int64_t head_kv) {
        const int64_t i = index(tc, stream, cell, head_kv);

        write(tc, stream, cell, head_kv, stored(tc.type_k, k_val[i]), stored(tc.type_v, v_val[i]));
    }

    // what the cell holds before the node has stored it: not numbers
    void forget(const test_case & tc, int64_t stream, int64_t cell, int64_t head_kv) {
        const auto none = [](ggml_type type, int64_t n) { return std::vector<char>(ggml_row_size(type, n), char(0xff)); };

        write(tc, stream, cell, head_kv, none(tc.type_k, tc.n_embd_k), none(tc.type_v, tc.n_embd_v));
    }

private:
    void write(const test_case & tc, int64_t stream, int64_t cell, int64_t head_kv, const std::vector<char> & k_row, const std::vector<char> & v_row) {
        char * v_dst = (char *) v->data + stream*v->nb[3] + head_kv*v->nb[1];

        memcpy((char *) k->data + stream*k->nb[3] + cell*k->nb[2] + head_kv*k->nb[1], k_row.data(), k_row.size());
        if (!tc.v_trans) {
            memcpy(v_dst + cell*v->nb[2], v_row.data(), v_row.size());
            return;
        }
        for (int64_t d = 0; d < tc.n_embd_v; ++d) {
            memcpy(v_dst + d*v->nb[2] + cell*v->nb[0], v_row.data() + d*v->nb[0], v->nb[0]);
        }
    }
};

//
// a case
//

// which cells a token sees, and the range that says so
inline std::vector<bool> pick_live(const test_case & tc, llama_self_extend_range & range, std::mt19937 & rng) {
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);

    std::vector<bool> live(tc.n_far + tc.n_near);

    for (const bool far : { true, false }) {
        const int64_t n    = far ? tc.n_far : tc.n_near;
        const bool    own  = !far && tc.store; // a token sees itself
        const bool    dead = uniform(rng) < 0.2f || tc.hidden == (far ? HIDDEN_FAR : HIDDEN_NEAR);

        int64_t a = tc.runs ? rng() % (n + 1) : 0;
        int64_t b = tc.runs ? rng() % (n + 1) : n;
        if (own) {
            a = std::min<int64_t>(a, range.near_new);
            b = std::max<int64_t>(b, range.near_new + 1);
        }

        int32_t begin  = 0;
        int32_t end    = 0;
        int32_t n_live = 0;

        for (int64_t j = std::min(a, b); j < std::max(a, b); ++j) {
            const bool cur = (!dead && (tc.runs || uniform(rng) < tc.p_live)) || (own && j == range.near_new);

            live[(far ? 0 : tc.n_far) + j] = cur;
            if (cur) {
                begin = end == 0 ? j : begin;
                end   = j + 1;
                n_live++;
            }
        }

        (far ? range.far_begin : range.near_begin) = begin;
        (far ? range.far_end   : range.near_end  ) = end;
        (far ? range.far_dense : range.near_dense) = n_live == end - begin;
    }

    return live;
}

// one row of the result, and what each cell weighs in it
struct exact_row {
    std::vector<double> values;
    std::vector<double> weights;
};

inline exact_row expect(const test_case & tc, const part * parts, const std::vector<bool> & live, int64_t t, int64_t h, float scale, float sink) {
    const int64_t n_cells = tc.n_far + tc.n_near;
    const int64_t n_head  = tc.n_head_kv*tc.n_gqa;

    std::vector<double> score(n_cells);
    double score_max = sink;

    for (int64_t j = 0; j < n_cells; ++j) {
        if (live[j]) {
            const auto & p = parts[j < tc.n_far ? 0 : 1];
            const auto & q = p.q_val[t*n_head + h];
            const auto & k = p.k_val[p.index(tc, t/tc.n_tokens, j < tc.n_far ? j : j - tc.n_far, h/tc.n_gqa)];

            double s = 0.0;
            for (int64_t d = 0; d < tc.n_embd_k; ++d) {
                s += double(q[d])*k[d];
            }
            s *= scale;

            score[j]  = tc.softcap != 0.0f ? tc.softcap*std::tanh(s/tc.softcap) : s;
            score_max = std::max(score_max, score[j]);
        }
    }

    exact_row res = { std::vector<double>(tc.n_embd_v, 0.0), std::vector<double>(n_cells, 0.0) };
    double sum = sink > -INFINITY ? std::exp(sink - score_max) : 0.0;

    for (int64_t j = 0; j < n_cells; ++j) {
        if (live[j]) {
            const auto & p = parts[j < tc.n_far ? 0 : 1];
            const auto & v = p.v_val[p.index(tc, t/tc.n_tokens, j < tc.n_far ? j : j - tc.n_far, h/tc.n_gqa)];

            const double w = std::exp(score[j] - score_max);

            sum += w;
            res.weights[j] = w;
            for (int64_t d = 0; d < tc.n_embd_v; ++d) {
                res.values[d] += w*v[d];
            }
        }
    }

    for (auto * row : { &res.values, &res.weights }) {
        for (auto & x : *row) {
            x = sum == 0.0 ? 0.0 : x/sum;
        }
    }
    return res;
}
