#pragma once

#include <cstdint>

//
// the arithmetic of SelfExtend, and nothing else (arXiv 2401.01325, section 3)
//
// another map of positions (later work uses other offsets, or a group size that follows the length) is another one of these
//

struct llama_self_extend_map {
    uint32_t ga_n; // group size
    uint32_t ga_w; // neighbour window

    // a pair is near if pos_q - pos_k < ga_w, and far otherwise
    bool is_far(int64_t pos_q, int64_t pos_k) const {
        return pos_q - pos_k >= int64_t(ga_w);
    }

    // the positions at which far queries and far keys are rotated
    int64_t pos_q(int64_t pos) const {
        return pos/ga_n + ga_w - ga_w/ga_n;
    }

    int64_t pos_k(int64_t pos) const {
        return pos/ga_n;
    }

    // the relative position that the model sees, pos_k <= pos_q
    int64_t pos_rel(int64_t pos_q, int64_t pos_k) const;

    // the largest relative position among n_tokens tokens
    int64_t pos_rel_max(int64_t n_tokens) const;

    // the longest sequence whose relative positions all stay below n_ctx_train, ga_w < n_ctx_train
    int64_t n_ctx_reach(uint32_t n_ctx_train) const;
};

// The group size of a sequence that has map.ga_n and grows to n_tokens: the same while that reaches, else the smallest power of two
// above it that does, and no more than ga_n_max. 0 if ga_n_max does not reach
uint32_t llama_self_extend_map_raised(const llama_self_extend_map & map, uint32_t n_ctx_train, uint32_t ga_n_max, int64_t n_tokens);

// the smallest group size whose reach is at least n_tokens, 0 if there is none, as when ga_w >= n_ctx_train
uint32_t llama_self_extend_map_ga_n_min(uint32_t n_ctx_train, uint32_t ga_w, int64_t n_tokens);
