#pragma once

#include "arg.h"

#include "llama-self-extend.h"

#include <vector>

//
// the options of llama.cpp's programs that choose how contexts are extended
//

// --ga-n, --ga-w, --ga-map, --ga-groups, and their environment variables
std::vector<common_arg> llama_self_extend_args();

// Take what they were given for the contexts of the process. Without any of them the group size follows the length of the text.
// Throws std::invalid_argument if they are wrong for every model, or with others.
void llama_self_extend_apply_args(const common_params & base);

// whether --keep-slots was given
bool llama_self_extend_keep_slots();

// by which --ga-map chooses it
const char * llama_self_extend_map_name(llama_self_extend_map_type map);
