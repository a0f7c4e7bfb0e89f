#pragma once

#include <string>
#include <vector>

struct llama_vocab;

// Throws std::invalid_argument where llama.cpp's sampler does not survive a grammar, or a pattern that it begins at.
void llama_self_extend_require_grammar(
        const llama_vocab * vocab, const std::string & grammar, const std::vector<std::string> & patterns);
