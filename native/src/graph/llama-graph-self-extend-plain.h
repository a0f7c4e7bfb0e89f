#pragma once

struct llama_context;

//
// what llama.cpp does to the keys of a plain context
//

// Why llama.cpp's shift of a plain context would end the process, or leave keys that are not those of their new positions.
// Told from the RoPE in the graph of the model. Empty if the shift is exact, and for a context that is extended.
const char * llama_self_extend_find_shift_fault(const llama_context & lctx);
