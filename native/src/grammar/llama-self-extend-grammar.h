#pragma once

#include "llama-grammar.h"

#include <cstddef>
#include <optional>
#include <string>

//
// grammars (GBNF) that llama.cpp's parser and its sampler survive
//

// why a grammar cannot be used
struct llama_self_extend_grammar_fault {
    std::string message;
    int64_t     offset; // of the place in the text, in bytes; -1: the text as a whole
};

// The most stacks (readings of what has been sampled) that are followed at a time. llama.cpp compares each with each.
constexpr size_t LLAMA_SELF_EXTEND_GRAMMAR_MAX_STACKS = 20000;

// Called by llama.cpp's sampler when it has taken a token. Throws std::runtime_error if there are more.
void llama_self_extend_grammar_check_stacks(const llama_grammar_stacks & stacks);

// Read a grammar as llama.cpp's parser does, with the place of what is wrong. Afterwards its rules are in the parser.
std::optional<llama_self_extend_grammar_fault> llama_self_extend_grammar_parse(
        llama_grammar_parser & parser,
                  const char * src,
                  const char * root);

// What llama.cpp does not survive in rules that have been read: a way round that takes no token, which it follows without end; a rule
// that can neither begin nor be left out, which is an assertion; too much to follow
struct llama_self_extend_grammar_bad_rule {
    std::string message;
    size_t      rule;
};

std::optional<llama_self_extend_grammar_bad_rule> llama_self_extend_grammar_check_rules(
        const llama_grammar_rules & rules,
                           size_t   root);
