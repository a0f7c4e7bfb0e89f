#include "rope/llama-self-extend-freqs.h"

#include "rope/llama-self-extend-rope.h"

#include "ggml-backend.h"

llama_self_extend_freqs::llama_self_extend_freqs(const llama_self_extend_map & map, uint32_t den, uint32_t n_ctx_train) :
    map(map), den(den), n_ctx_train(n_ctx_train) {}

ggml_tensor * llama_self_extend_freqs::build(ggml_context * ctx, const int32_t * op_params, ggml_tensor * factors_model) {
    if (!map.has_freqs()) {
        return factors_model;
    }

    const int64_t n_rot     = llama_self_extend_rope_n_rot(op_params);
    const float   freq_base = llama_self_extend_rope_freq_base(op_params);

    for (const auto & cur : tables) {
        if (cur.n_rot == n_rot && cur.freq_base == freq_base && cur.factors_model == factors_model) {
            return cur.factors;
        }
    }

    ggml_tensor * input = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_rot/2);
    ggml_set_input(input);
    ggml_set_name(input, "self_extend_factors");

    // models may have more factors than pairs
    ggml_tensor * factors = factors_model ? ggml_mul(ctx, input, ggml_view_1d(ctx, factors_model, n_rot/2, 0)) : input;

    tables.push_back({ n_rot, freq_base, factors_model, input, factors });

    return factors;
}

void llama_self_extend_freqs::set_input() const {
    for (const auto & cur : tables) {
        if (!cur.input->buffer) {
            continue; // no node of the graph needs it
        }

        std::vector<float> data;
        for (int64_t i = 0; i < cur.n_rot/2; ++i) {
            data.push_back(den/map.freq_scale(i, cur.n_rot, cur.freq_base, n_ctx_train));
        }

        ggml_backend_tensor_set(cur.input, data.data(), 0, ggml_nbytes(cur.input));
    }
}

uint32_t llama_self_extend_freqs::get_den() const {
    return den;
}

float llama_self_extend_freqs::get_magnitude() const {
    return map.magnitude();
}
