#pragma once

#include "ggml.h"

#include <cstdint>

//
// what the attention kernel does with vectors: the same code for each instruction set, chosen when it runs
//
// Rows are query heads of tokens. A tile of cells is worked on in one of two forms:
//
// - few rows (decode): scores [n_rows, n_cells] are dot products with K as it lies in the cache, and V is added up as it
//   lies there, so that what is read from memory is used once, for all rows, in registers
//
// - many rows (prompts): K and V of the tile are unpacked to F32 first, and rows are in the last dimension, a panel of
//   rows at a time: S^T = K Q^T, softmax, O^T += V^T S^T. Then neither K nor V has to be transposed, in whichever layout
//   V is cached, the softmax runs over whole vectors, and a panel stays in the first-level cache throughout
//
// Scores are in units of log(2): Q is multiplied by scale*log2(e) when it is loaded, and 2^x is what is summed up.
//

struct llama_self_extend_ops {
    const char * name;

    int64_t n_vec;   // floats of a vector; rows of Q and O are padded to a multiple of it, with zeros
    int64_t n_panel; // rows of a panel, at most; a multiple of n_vec

    // can dot_rows() and add_rows() read this type? others have to be unpacked
    bool (*reads)(ggml_type type);

    // dst[n], F32
    void (*unpack)(ggml_type type, const char * src, float * dst, int64_t n);

    //
    // few rows
    //

    // s[r*lds + j] (+)= q[r*ldq + ...] * k_j[...], n values each, where k_j is at k + j*stride
    void (*dot_rows)(ggml_type type, const char * k, size_t stride, int64_t n_cells, int64_t n,
            const float * q, int64_t ldq, int64_t n_rows, float * s, int64_t lds, bool accumulate);

    // o[r*ldo + ...] += p[r*ldp + j] * v_j[...], n values each, where v_j is at v + j*stride
    void (*add_rows)(ggml_type type, const char * v, size_t stride, int64_t n_cells, int64_t n,
            const float * p, int64_t ldp, int64_t n_rows, float * o, int64_t ldo);

    // scores -> weights of one row, n_cells a multiple of n_vec. m and l go on; returns what was summed up before
    // has to be multiplied by
    float (*softmax_row)(float * s, int64_t n_cells, float * m, float * l);

    //
    // many rows: a panel of n_rows <= n_panel, a multiple of n_vec
    //

    // c[i*n_rows + r] (+)= a[i*am + k*ak] * b[k*n_rows + r]
    void (*gemm)(float * c, const float * a, int64_t am, int64_t ak, const float * b,
            int64_t m, int64_t k, int64_t n_rows, bool accumulate);

    // s [n_cells, n_rows], m and l [n_rows] go on, o [n_embd, n_rows] is multiplied by what it has to be
    void (*softmax_panel)(float * s, int64_t n_cells, int64_t n_rows, float * m, float * l, float * o, int64_t n_embd);

    //
    // any
    //

    // x = cap*tanh(x)
    void (*softcap)(float * x, int64_t n, float cap);
};

// what this machine can run, best first; nullptr after the last
const llama_self_extend_ops * const * llama_self_extend_ops_list();

// nullptr if the compiler was not given the instructions. whether the machine has them is for the list to ask
const llama_self_extend_ops * llama_self_extend_ops_avx512();
const llama_self_extend_ops * llama_self_extend_ops_avx2();
const llama_self_extend_ops * llama_self_extend_ops_neon();
const llama_self_extend_ops * llama_self_extend_ops_portable();
