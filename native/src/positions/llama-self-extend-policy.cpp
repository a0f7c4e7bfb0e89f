#include "positions/llama-self-extend-policy.h"

#include <algorithm>

uint32_t llama_self_extend_policy::begin(int64_t n_tokens) const {
    n_tokens = std::min(n_tokens, n_ctx);

    for (const auto & step : steps) {
        if (n_tokens <= step.n_tokens) {
            return reaching(step.ga_n, n_tokens);
        }
    }

    // the rule knows nothing of the model: no smaller group size than was measured last
    const uint32_t ga_n = llama_self_extend_map_ga_n_auto(map, n_ctx_train, n_tokens);

    return steps.empty() || ga_n == 0 ? ga_n : reaching(std::max(ga_n, steps.back().ga_n), n_tokens);
}

uint32_t llama_self_extend_policy::resume(uint32_t ga_n, int64_t n_kept, int64_t n_tokens) const {
    const uint32_t chosen = begin(n_tokens);

    // no more is kept than fits into the window: the group size has not been looked at
    return n_kept <= int64_t(map.ga_w) ? chosen : std::max(ga_n, chosen);
}

uint32_t llama_self_extend_policy::ga_n_max() const {
    uint32_t res = begin(n_ctx);

    for (const auto & step : steps) {
        res = res ? std::max(res, begin(step.n_tokens)) : 0;
    }

    return res ? reaching(res, n_ctx) : 0;
}

uint32_t llama_self_extend_policy::reaching(uint32_t ga_n, int64_t n_tokens) const {
    return llama_self_extend_map_raised({ ga_n, map.ga_w, map.type }, n_ctx_train, UINT32_MAX, n_tokens);
}
