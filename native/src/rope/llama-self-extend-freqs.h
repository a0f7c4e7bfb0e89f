#pragma once

#include "positions/llama-self-extend-positions.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

//
// the frequencies of a map: what far keys and queries are turned by, beside their positions
//

// Factors by which the RoPE nodes of a graph divide their angles. Inputs of that graph, made where they are first needed.
class llama_self_extend_freqs {
public:
    // the frequencies of the model
    llama_self_extend_freqs() = default;

    // den: positions are in units of 1/den
    llama_self_extend_freqs(const llama_self_extend_map & map, uint32_t den, uint32_t n_ctx_train);

    // those of a RoPE node, F32 [n_rot/2]: ours times those of the model, either of them nullptr if there are none
    ggml_tensor * build(ggml_context * ctx, const int32_t * op_params, ggml_tensor * factors_model);

    void set_input() const;

    uint32_t get_den() const;

    // by what the node multiplies beside that
    float get_magnitude() const;

private:
    llama_self_extend_map map = { 1, 0 };

    uint32_t den         = 1;
    uint32_t n_ctx_train = 0;

    struct table {
        int64_t       n_rot;
        float         freq_base;
        ggml_tensor * factors_model;
        ggml_tensor * input;
        ggml_tensor * factors;
    };

    std::vector<table> tables;
};
