#pragma once

#include "positions/llama-self-extend-positions.h"

#include <cstdint>
#include <vector>

//
// which group size a text is read with, where that is left to its length; the same in pyselfextend.groups
//

struct llama_self_extend_policy {
    llama_self_extend_map map; // of the plain model
    uint32_t n_ctx_train;
    int64_t  n_ctx; // the longest text

    std::vector<llama_self_extend_step> steps; // that were measured, of ascending lengths

    // of a text of n_tokens tokens that is read from its beginning. 0: none reaches
    uint32_t begin(int64_t n_tokens) const;

    // of one of which n_kept tokens have been read with ga_n
    uint32_t resume(uint32_t ga_n, int64_t n_kept, int64_t n_tokens) const;

    // the largest of any text. 0: none reaches n_ctx
    uint32_t ga_n_max() const;

private:
    uint32_t reaching(uint32_t ga_n, int64_t n_tokens) const;
};
