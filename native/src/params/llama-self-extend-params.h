#pragma once

#include "llama-self-extend.h"
#include "positions/llama-self-extend-policy.h"
#include "positions/llama-self-extend-positions.h"

#include "llama-impl.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

struct llama_model;

//
// the parameters of the next context, per thread, and why they were refused
//

// the parameters of a context, checked against its model
struct llama_self_extend_config {
    llama_self_extend_map  map; // that a sequence begins with
    uint32_t               ga_n_max;
    llama_self_extend_attn attn;
    uint32_t               n_ctx_train;
    int64_t                n_ctx_reach; // with ga_n_max

    std::optional<llama_self_extend_policy> policy; // if the group size is left to the length of the text
};

// what llama_self_extend_set_default() was given
struct llama_self_extend_default {
    llama_self_extend_params            params;
    std::vector<llama_self_extend_step> steps;
};

// nullopt: none
std::optional<llama_self_extend_default> llama_self_extend_get_default();

// Set the parameters of the calling thread's next context, with the steps of a default.
bool llama_self_extend_set_next(const llama_self_extend_default & next);

// The longest sequence of a context, in tokens.
uint32_t llama_self_extend_n_ctx_seq(const llama_model & model, const llama_context_params & params);

// Takes the calling thread's pending parameters for as long as llama_init_from_model() runs.
struct llama_self_extend_scope {
    llama_self_extend_scope(const llama_model * model, const llama_context_params & params);
    ~llama_self_extend_scope();

    llama_self_extend_scope(const llama_self_extend_scope &) = delete;
    llama_self_extend_scope & operator=(const llama_self_extend_scope &) = delete;

    bool ok = true; // false: the parameters do not fit, the reason has been logged
};

// The parameters of the context that the calling thread is creating, nullptr if it is a plain one.
const llama_self_extend_config * llama_self_extend_get_active();

// Keep the reason for llama_self_extend_last_error(), then throw it.
[[noreturn]]
LLAMA_ATTRIBUTE_FORMAT(1, 2)
void llama_self_extend_refuse(const char * fmt, ...);

// Forget the reason of an earlier failure.
void llama_self_extend_accept();

// Keep a reason for llama_self_extend_last_error(), of something that has not failed.
void llama_self_extend_explain(const std::string & reason);
