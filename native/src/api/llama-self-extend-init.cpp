#include "llama-self-extend.h"

#include "params/llama-self-extend-params.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <string>

//
// contexts that are created in somebody else's time, with the parameters of the process
//

// why a context of a caller who has not asked for a group size is a plain one. empty: it need not be
static std::string find_reason(const llama_context_params & params) {
    const bool is_scaled = params.rope_scaling_type != LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED || params.rope_freq_base != 0.0f ||
        params.rope_freq_scale != 0.0f || params.yarn_ext_factor >= 0.0f || params.yarn_orig_ctx != 0;

    return is_scaled ? "the scaling of its positions is chosen already" : "";
}

llama_context * llama_self_extend_init_from_model(llama_model * model, llama_context_params params) {
    const auto given   = llama_self_extend_get_default();
    const bool is_auto = given && given->params.ga_n_max == LLAMA_SELF_EXTEND_GA_N_MAX_AUTO;

    if (!given || !model || (is_auto && llama_self_extend_n_ctx_seq(*model, params) <= model->hparams.n_ctx_train)) {
        return llama_init_from_model(model, params);
    }

    std::string reason = is_auto ? find_reason(params) : "";

    if (reason.empty()) {
        llama_self_extend_set_next(*given);

        llama_context * ctx = llama_init_from_model(model, params);

        reason = llama_self_extend_last_error();

        if (ctx || !is_auto || reason.empty()) {
            return ctx;
        }
    }

    LLAMA_LOG_WARN("%s: the context is longer than the %u tokens that the model was trained on, and it is a plain one: %s\n", __func__,
            model->hparams.n_ctx_train, reason.c_str());

    llama_context * ctx = llama_init_from_model(model, params);

    llama_self_extend_explain(reason);

    return ctx;
}
