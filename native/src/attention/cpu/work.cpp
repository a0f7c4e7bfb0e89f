#include "attention/cpu/work.h"

#include <vector>

namespace llama_self_extend_cpu {

attn_work::attn_work(const attn_problem & pr, const llama_self_extend_attn_params & params, const llama_self_extend_attn_op & op,
        const llama_self_extend_ops & ops, int64_t n_rows, int64_t n_cells) :
    pr(pr), params(params), op(op), ops(ops), ldk(pad(pr.n_embd_k, ops.n_vec)), ldv(pad(pr.n_embd_v, ops.n_vec)) {
    n_rows = pad(n_rows, ops.n_vec);

    // a custom node has no work buffer of its own
    static thread_local std::vector<float> buf;

    constexpr int64_t align = 64/sizeof(float);

    const size_t n = (2*ldk + n_cells + ldv + 2)*n_rows + n_cells*(ldk + ldv) + 9*align;
    if (buf.size() < n) {
        buf.resize(n);
    }

    float * p = buf.data();
    const auto take = [&](int64_t n) {
        float * res = (float *) ((uintptr_t(p) + 63)/64*64);
        p = res + n;
        return res;
    };

    q[FAR]  = take(ldk*n_rows);
    q[NEAR] = take(ldk*n_rows);
    s       = take(n_cells*n_rows);
    o       = take(ldv*n_rows);
    m       = take(n_rows);
    l       = take(n_rows);
    k       = take(n_cells*ldk);
    v       = take(n_cells*ldv);
}

} // namespace llama_self_extend_cpu
