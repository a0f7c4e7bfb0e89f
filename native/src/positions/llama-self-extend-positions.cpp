#include "positions/llama-self-extend-positions.h"

#include <algorithm>

int64_t llama_self_extend_map::pos_rel(int64_t pos_q, int64_t pos_k) const {
    return is_far(pos_q, pos_k) ? this->pos_q(pos_q) - this->pos_k(pos_k) : pos_q - pos_k;
}

int64_t llama_self_extend_map::pos_rel_max(int64_t n_tokens) const {
    // near relative positions are below ga_w, far ones are not and grow with the distance
    return pos_rel(n_tokens - 1, 0);
}

int64_t llama_self_extend_map::n_ctx_reach(uint32_t n_ctx_train) const {
    return (int64_t(n_ctx_train) - ga_w + ga_w/ga_n)*ga_n;
}

uint32_t llama_self_extend_map_raised(const llama_self_extend_map & map, uint32_t n_ctx_train, uint32_t ga_n_max, int64_t n_tokens) {
    if (map.ga_w >= n_ctx_train) {
        return 0;
    }

    uint64_t ga_n = map.ga_n;

    while (llama_self_extend_map { uint32_t(ga_n), map.ga_w }.n_ctx_reach(n_ctx_train) < n_tokens) {
        if (ga_n >= ga_n_max) {
            return 0;
        }

        uint64_t above = 1;
        while (above <= ga_n) {
            above *= 2;
        }
        ga_n = std::min<uint64_t>(above, ga_n_max);
    }

    return ga_n;
}

uint32_t llama_self_extend_map_ga_n_min(uint32_t n_ctx_train, uint32_t ga_w, int64_t n_tokens) {
    if (ga_w >= n_ctx_train) {
        return 0;
    }

    // reach = (n_ctx_train - ga_w)*ga_n + ga_w - ga_w % ga_n. the last term makes it rise unevenly, so start where
    // the bound without it allows and walk up
    const int64_t n_step = int64_t(n_ctx_train) - ga_w;
    const int64_t n_far  = n_tokens - ga_w;

    for (int64_t ga_n = std::max<int64_t>(1, (n_far + n_step - 1)/n_step); ga_n <= UINT32_MAX; ++ga_n) {
        const llama_self_extend_map map = { uint32_t(ga_n), ga_w };

        if (map.n_ctx_reach(n_ctx_train) >= n_tokens) {
            return map.ga_n;
        }
    }

    return 0;
}
