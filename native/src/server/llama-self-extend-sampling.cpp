#include "server/llama-self-extend-sampling.h"

#include "llama-self-extend.h"

#include <algorithm>
#include <stdexcept>

// std::regex reads what is in parentheses by calling itself
static constexpr int N_GROUPS_MAX = 1000;

void llama_self_extend_require_grammar(
        const llama_vocab * vocab, const std::string & grammar, const std::vector<std::string> & patterns) {
    if (grammar.empty()) {
        return;
    }

    for (const auto & pattern : patterns) {
        if (std::count(pattern.begin(), pattern.end(), '(') > N_GROUPS_MAX) {
            throw std::invalid_argument(
                "a pattern that the grammar begins at has more than " + std::to_string(N_GROUPS_MAX) + " parentheses");
        }
    }

    if (llama_self_extend_grammar_check(vocab, grammar.c_str(), "root")) {
        return;
    }

    int64_t offset = -1;
    std::string message = llama_self_extend_grammar_error(&offset);

    if (offset >= 0) {
        message += " (at byte " + std::to_string(offset) + ")";
    }
    throw std::invalid_argument("the grammar cannot be used: " + message);
}
