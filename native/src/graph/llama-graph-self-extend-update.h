#pragma once

#include "llama-kv-cache.h"

#include <cstdint>
#include <vector>

struct llama_context;
class  llama_kv_cache_self_extend;

//
// graphs that turn cached keys: all of it happens where the cache lies
//

// Store the keys and values of cells of the far part in cells of the near part, with the keys turned to their own positions.
// ubatch: positions of one sequence, not applied yet
// sinfo: their cells in the near part
// cells_far [n_tokens]: their cells in the far part
// returns false if the graph cannot be computed
bool llama_self_extend_restore_near(
        const llama_kv_cache_self_extend & kv,
                           llama_context * lctx,
                      const llama_ubatch & ubatch,
         const llama_kv_cache::slot_info & sinfo,
             const std::vector<uint32_t> & cells_far);
