#pragma once

#include "llama-kv-cache.h"

#include <cstdint>
#include <vector>

struct ggml_cgraph;
struct llama_context;

class llama_kv_cache_self_extend;
class llm_graph_result;

//
// graphs that turn cached keys: all of it happens where the cache lies
//

// The graph that carries out pending shifts of one part of our cache, nullptr if kv is none of ours.
ggml_cgraph * llama_self_extend_build_graph_shift(const llama_kv_cache & kv, llm_graph_result * res, llama_context * lctx);

// What the cache turns its keys with: see llama_kv_cache_self_extend::turn_graphs
bool llama_self_extend_turn_far(
        const llama_kv_cache_self_extend & kv,
                           llama_context * lctx,
              const std::vector<int32_t> & rows,
              const std::vector<int32_t> & deltas);

bool llama_self_extend_restore_near(
        const llama_kv_cache_self_extend & kv,
                           llama_context * lctx,
                      const llama_ubatch & ubatch,
         const llama_kv_cache::slot_info & sinfo,
             const std::vector<uint32_t> & cells_far);
