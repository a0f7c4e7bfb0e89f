#include "grammar/llama-self-extend-grammar.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

using fault = llama_self_extend_grammar_fault;

// the parser calls itself for each level of parentheses, and writes out what is repeated
static constexpr int    MAX_NESTING  = 1000;
static constexpr size_t MAX_REPEATED = 4u << 20; // elements, of 8 bytes

// the parser's own limit of a repetition, beyond which it refuses it or takes it for unlimited
static constexpr size_t MAX_REPETITIONS = 2000;

static bool is_word(char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '-';
}

// behind what begins at pos: a literal, a range, a token, a comment, a word, or one character
static const char * skip_item(const char * pos) {
    const char * close = strchr("\"[<", *pos);

    if (close) {
        const char end = *close == '"' ? '"' : *close == '[' ? ']' : '>';
        for (++pos; *pos && *pos != end; ++pos) {
            pos += *pos == '\\' && end != '>' && pos[1];
        }
        return pos + (*pos != 0);
    }
    if (*pos == '#') {
        return pos + strcspn(pos, "\r\n");
    }
    if (!is_word(*pos)) {
        return pos + 1;
    }
    while (is_word(*pos)) {
        ++pos;
    }
    return pos;
}

// the larger number in {m}, {m,} or {m,n}
static size_t repetitions(const char * pos) {
    size_t n = 1;
    for (; *pos && *pos != '}'; ++pos) {
        if ('0' <= *pos && *pos <= '9') {
            char * end;
            n   = std::max<size_t>(n, strtoull(pos, &end, 10));
            pos = end - 1;
        }
    }
    return std::min(n, MAX_REPETITIONS);
}

// what would be too much for the parser itself
static std::optional<fault> check_size(const char * src) {
    int    depth = 0;
    size_t last  = 0; // elements of the item before, at most
    size_t total = 0;

    for (const char * pos = src; *pos; pos = skip_item(pos)) {
        size_t n = 0; // how often the item before is written
        switch (*pos) {
            case '(': ++depth;                break;
            case ')': depth -= depth > 0; last = 1; break;
            case '{': n = repetitions(pos);   break;
            case '*':
            case '+':
            case '?': n = 1;                  break;
            case '"':
            case '[': last = skip_item(pos) - pos; break;
            default:  last = strchr(" \t\r\n#", *pos) || *pos == '}' || *pos == ',' ? last : 1;
        }
        if (depth > MAX_NESTING) {
            return fault { "more than " + std::to_string(MAX_NESTING) + " parentheses in one another", pos - src };
        }
        if (n > 0) {
            total += n*last;
            last   = n*last + 1;
        }
        if (total > MAX_REPEATED) {
            return fault { "what is repeated is too long", pos - src };
        }
        if (*pos == '{') {
            pos += strcspn(pos, "}");
            if (!*pos) {
                break;
            }
        }
    }

    return std::nullopt;
}

// the parser's words end in the text from the place on
static fault fault_of(const std::string & what, const std::string & src, size_t begin) {
    static const std::string AT = " at ";

    for (size_t p = what.find(AT); p != std::string::npos; p = what.find(AT, p + 1)) {
        const size_t n = what.size() - p - AT.size();
        if (n <= src.size() - begin && src.compare(src.size() - n, n, what, p + AT.size(), n) == 0) {
            return { what.substr(0, p), (int64_t) (src.size() - n) };
        }
    }
    if (what == "unexpected end of input") {
        return { what, (int64_t) src.size() };
    }
    if (what.find("stoul") == 0) { // the name of the C++ function is all that it says
        return { "a number is too large", (int64_t) begin };
    }
    return { what, (int64_t) begin };
}

static size_t skip_space(const char * src, size_t pos) {
    while (src[pos] && strchr(" \t\r\n#", src[pos])) {
        pos = skip_item(src + pos) - src;
    }
    return pos;
}

// where a rule is first referred to
static int64_t find_word(const char * src, const std::string & word) {
    for (const char * pos = src; *pos; pos = skip_item(pos)) {
        const size_t n = skip_item(pos) - pos;
        if (n == word.size() && word.compare(0, n, pos, n) == 0) {
            return pos - src;
        }
    }
    return -1;
}

std::optional<fault> llama_self_extend_grammar_parse(llama_grammar_parser & parser, const char * src, const char * root) {
    if (auto found = check_size(src)) {
        return found;
    }

    std::map<std::string, size_t> begin_of; // each rule, by its name
    const std::string text = src;

    for (size_t pos = skip_space(src, 0); src[pos];) {
        const size_t begin = pos;
        begin_of[text.substr(begin, skip_item(src + begin) - (src + begin))] = begin;
        try {
            pos = parser.parse_rule(src + begin) - src;
        } catch (const std::exception & err) {
            return fault_of(err.what(), text, begin);
        }
    }

    if (begin_of.count(root) == 0) {
        return fault { "there is no rule '" + std::string(root) + "', with which it has to begin", -1 };
    }
    for (const auto & [name, id] : parser.symbol_ids) {
        if (id >= parser.rules.size() || parser.rules[id].empty()) {
            return fault { "the rule '" + name + "' is not defined", find_word(src, name) };
        }
    }

    if (auto bad = llama_self_extend_grammar_check_rules(parser.rules, parser.symbol_ids.at(root))) {
        for (const auto & [name, id] : parser.symbol_ids) {
            if (id == bad->rule) {
                const std::string of = name.substr(0, name.find('_')); // the parser's own rules are called after the one they are in
                return fault { "the rule '" + of + "' " + bad->message, (int64_t) begin_of.at(of) };
            }
        }
    }

    return std::nullopt;
}
