#pragma once

#include "llama-self-extend.h"

#include <cstdint>

//
// the arithmetic of SelfExtend and of other maps of positions, and nothing else; the header of the library has their formulas
//
// a map is chosen by its type here, and nowhere else
//

struct llama_self_extend_map {
    uint32_t ga_n; // group size, in units: n_unit() is the plain model
    uint32_t ga_w; // neighbour window

    llama_self_extend_map_type type = LLAMA_SELF_EXTEND_MAP_SELF_EXTEND;

    // a pair is near if pos_q - pos_k < ga_w, and far otherwise
    bool is_far(int64_t pos_q, int64_t pos_k) const {
        return pos_q - pos_k >= int64_t(ga_w);
    }

    // the positions at which far queries and far keys are rotated, in units of 1/pos_den() positions
    int64_t pos_q(int64_t pos) const;
    int64_t pos_k(int64_t pos) const;

    uint32_t pos_den() const;

    // the same in units of 1/den positions, den a multiple of pos_den()
    int64_t pos_q(int64_t pos, uint32_t den) const {
        return pos_q(pos)*(den/pos_den());
    }

    int64_t pos_k(int64_t pos, uint32_t den) const {
        return pos_k(pos)*(den/pos_den());
    }

    // by what the angle of the i-th pair of n_rot/2 is multiplied beside that: 1 except for MRROPE
    double freq_scale(int64_t i, int64_t n_rot, double freq_base, uint32_t n_ctx_train) const;

    // by what far queries and keys are multiplied
    double magnitude() const;

    // are there near keys? can the group of a sequence change?
    bool has_window() const {
        return type != LLAMA_SELF_EXTEND_MAP_MRROPE;
    }

    bool follows() const {
        return type != LLAMA_SELF_EXTEND_MAP_MRROPE;
    }

    // does it turn some pairs by other angles than positions do?
    bool has_freqs() const {
        return type == LLAMA_SELF_EXTEND_MAP_LEAKY || type == LLAMA_SELF_EXTEND_MAP_MRROPE;
    }

    // the relative position that the model sees, pos_k <= pos_q, in units of 1/pos_den() positions
    int64_t pos_rel(int64_t pos_q, int64_t pos_k) const;

    // the largest relative position among n_tokens tokens, in units of 1/pos_den() positions
    int64_t pos_rel_max(int64_t n_tokens) const;

    // the longest sequence whose relative positions all stay below n_ctx_train, ga_w < n_ctx_train
    int64_t n_ctx_reach(uint32_t n_ctx_train) const;

    // group sizes are counted in parts of a token, of which there are so many
    uint32_t n_unit() const {
        return type == LLAMA_SELF_EXTEND_MAP_LAMPE ? LLAMA_SELF_EXTEND_LAMPE_UNIT : 1;
    }

    // Is there such a group size? nullptr, or what it must be.
    const char * find_fault() const;
};

// The group size of a sequence that has map.ga_n and grows to n_tokens: the same while that reaches, else the smallest power of two
// above it that does, and no more than ga_n_max. 0 if ga_n_max does not reach
uint32_t llama_self_extend_map_raised(const llama_self_extend_map & map, uint32_t n_ctx_train, uint32_t ga_n_max, int64_t n_tokens);

// the smallest group size of a map whose reach is at least n_tokens, 0 if there is none, as when ga_w >= n_ctx_train
uint32_t llama_self_extend_map_ga_n_min(const llama_self_extend_map & map, uint32_t n_ctx_train, int64_t n_tokens);

// the group size of a text of n_tokens tokens by the authors' rule, 0 if there is none
uint32_t llama_self_extend_map_ga_n_auto(const llama_self_extend_map & map, uint32_t n_ctx_train, int64_t n_tokens);
