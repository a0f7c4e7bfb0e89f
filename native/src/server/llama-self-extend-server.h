#pragma once

#include "json.h"

#include "llama-self-extend.h"

#include <cstdint>
#include <string>

//
// what llama.cpp's server says of SelfExtend, and asks of it
//

// How long a slot may become: the reach, the trained context if the context is a plain one.
int32_t llama_self_extend_n_ctx_slot(const llama_context * ctx);

// A slot begins with a text of which it has n_past tokens cached, to answer it with n_predict tokens, -1: nobody has said how many.
// ctx_dft: nullptr if there is no draft model
//
// Returns how many of them it keeps.
int32_t llama_self_extend_begin(
        llama_context * ctx_tgt, llama_context * ctx_dft, llama_seq_id seq_id, int32_t n_past, int32_t n_tokens, int32_t n_predict);

// For /props and /v1/models. To be asked when the context has been created, in its thread: why it is a plain one is forgotten later.
common_json llama_self_extend_props(const llama_context * ctx);

// What to do about a prompt that is longer than a slot, to follow a sentence that says so.
std::string llama_self_extend_advice(const llama_context * ctx);

// for /slots
common_json llama_self_extend_slot(const llama_context * ctx, llama_seq_id seq_id);

// for /metrics
std::string llama_self_extend_metrics(const llama_context * ctx);

// ga_n: the group size of the answer, 0 for none
// n_discarded: tokens that context shifts have taken from its text
void llama_self_extend_add_timings(common_json & timings, uint32_t ga_n, uint64_t n_discarded);
