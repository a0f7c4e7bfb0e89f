#pragma once

#include "params/llama-self-extend-params.h"

#include <cstdint>

struct llama_context;
struct llama_cparams;
struct llama_memory_i;
struct llama_model;

//
// what the patched llama.cpp calls when it creates and uses a context, with the scope of params/; its graphs call graph/
//

// Takes over the memory that llama_model::create_memory() made.
// Returns it as it is for a plain context. Throws if it is not a KV cache, or its keys are not rotated.
llama_memory_i * llama_self_extend_init_memory(llama_memory_i * mem, const llama_model & model, const llama_cparams & cparams);

// How many nodes SelfExtend adds to a compute graph at the most, 0 for a plain context.
uint32_t llama_self_extend_n_nodes(const llama_memory_i * mem);

// Carry out what is pending before a state is written: it holds no pending copies or shifts. Nothing for a plain context.
void llama_self_extend_update(llama_context & lctx);
