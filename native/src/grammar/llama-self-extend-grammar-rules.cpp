#include "grammar/llama-self-extend-grammar.h"

#include <algorithm>
#include <vector>

//
// what llama.cpp follows before it takes a token: the rules with which an alternate can begin
//

using bad_rule = llama_self_extend_grammar_bad_rule;

// llama.cpp calls itself for each rule on the way when it looks for left recursion, and looks at a rule again for each way to it
static constexpr size_t MAX_DEPTH = 2048;
static constexpr double MAX_STEPS = 2e8;

// from a rule to one that an alternate of it can begin with
struct edge {
    size_t to;
    bool   is_last; // nothing follows in the alternate: the stack does not grow
};

using edges = std::vector<std::vector<edge>>;

static bool is_end(const llama_grammar_element & elem) {
    return elem.type == LLAMA_GRETYPE_END || elem.type == LLAMA_GRETYPE_ALT;
}

// can it be left out by an empty alternate of its own, all that llama.cpp looks at for left recursion?
static std::vector<bool> find_empty(const llama_grammar_rules & rules) {
    std::vector<bool> res(rules.size());
    for (size_t i = 0; i < rules.size(); ++i) {
        bool at_start = true;
        for (const auto & elem : rules[i]) {
            res[i]   = res[i] || (is_end(elem) && at_start);
            at_start = is_end(elem);
        }
    }
    return res;
}

// can it be left out in any way?
static std::vector<bool> find_nullable(const llama_grammar_rules & rules) {
    struct alternate {
        size_t rule;
        size_t n_left = 0; // elements that are not known to be nullable
    };

    std::vector<alternate>           alternates;
    std::vector<std::vector<size_t>> used_in(rules.size()); // alternates, once for each time
    std::vector<size_t>              todo;
    std::vector<bool>                res(rules.size());

    const auto is_nullable = [&](const alternate & alt) {
        if (alt.n_left == 0 && !res[alt.rule]) {
            res[alt.rule] = true;
            todo.push_back(alt.rule);
        }
    };

    for (size_t i = 0; i < rules.size(); ++i) {
        alternate cur { i };
        for (const auto & elem : rules[i]) {
            if (is_end(elem)) {
                is_nullable(cur);
                alternates.push_back(cur);
                cur = { i };
                continue;
            }
            if (elem.type == LLAMA_GRETYPE_RULE_REF) {
                used_in[elem.value].push_back(alternates.size());
            }
            cur.n_left++;
        }
    }
    while (!todo.empty()) {
        const size_t rule = todo.back();
        todo.pop_back();
        for (const size_t i : used_in[rule]) {
            alternates[i].n_left--;
            is_nullable(alternates[i]);
        }
    }
    return res;
}

// is_empty: which rules are passed over. has_token: which rules can begin with a token of their own
static edges find_edges(const llama_grammar_rules & rules, const std::vector<bool> & is_empty, std::vector<size_t> & n_tokens) {
    edges res(rules.size());
    n_tokens.assign(rules.size(), 0);

    for (size_t i = 0; i < rules.size(); ++i) {
        bool at_start = true;
        for (size_t j = 0; j < rules[i].size(); ++j) {
            const auto & elem = rules[i][j];
            if (is_end(elem)) {
                at_start = true;
            } else if (at_start && elem.type == LLAMA_GRETYPE_RULE_REF) {
                res[i].push_back({ elem.value, is_end(rules[i][j + 1]) });
                at_start = is_empty[elem.value];
            } else if (at_start) {
                n_tokens[i]++;
                at_start = false;
            }
        }
    }
    return res;
}

// Tarjan's strongly connected components, in an order in which each comes after those that it leads to
struct components {
    std::vector<size_t>              of;  // component of a rule
    std::vector<std::vector<size_t>> all; // rules of a component

    components(const edges & next) : of(next.size(), SIZE_MAX), index(next.size(), SIZE_MAX), low(next.size()) {
        for (size_t i = 0; i < next.size(); ++i) {
            if (index[i] == SIZE_MAX) {
                visit(next, i);
            }
        }
    }

private:
    std::vector<size_t> index;
    std::vector<size_t> low;
    std::vector<size_t> open;
    size_t n_index = 0;

    void enter(size_t rule) {
        index[rule] = low[rule] = n_index++;
        open.push_back(rule);
    }

    void leave(size_t rule) {
        if (low[rule] != index[rule]) {
            return;
        }
        all.emplace_back();
        do {
            of[open.back()] = all.size() - 1;
            all.back().push_back(open.back());
            open.pop_back();
        } while (all.back().back() != rule);
    }

    // without recursion: rules may lead to one another in a chain of any length
    void visit(const edges & next, size_t start) {
        std::vector<std::pair<size_t, size_t>> path = { { start, 0 } }; // rule, its next edge
        enter(start);
        while (!path.empty()) {
            auto & [rule, i] = path.back();
            if (i < next[rule].size()) {
                const size_t to = next[rule][i++].to;
                if (index[to] == SIZE_MAX) {
                    enter(to);
                    path.emplace_back(to, 0);
                } else if (of[to] == SIZE_MAX) {
                    low[rule] = std::min(low[rule], index[to]);
                }
                continue;
            }
            const size_t done = rule;
            path.pop_back();
            leave(done);
            if (!path.empty()) {
                low[path.back().first] = std::min(low[path.back().first], low[done]);
            }
        }
    }
};

// what llama.cpp's own search for left recursion refuses, or does not come back from
static std::optional<bad_rule> check_search(const llama_grammar_rules & rules) {
    std::vector<size_t> n_tokens;
    const edges      next = find_edges(rules, find_empty(rules), n_tokens);
    const components comp(next);

    std::vector<size_t> depth(rules.size(), 1);
    std::vector<double> steps(rules.size());
    double total = 0;

    for (const auto & members : comp.all) {
        const size_t rule = members[0];
        steps[rule] = rules[rule].size();
        for (const auto & e : next[rule]) {
            if (members.size() > 1 || e.to == rule) {
                return bad_rule { "begins with itself (left recursion)", rule };
            }
            depth[rule]  = std::max(depth[rule], depth[e.to] + 1);
            steps[rule] += steps[e.to];
        }
        total += steps[rule];
        if (depth[rule] > MAX_DEPTH) {
            return bad_rule { "begins with a chain of more than " + std::to_string(MAX_DEPTH) + " rules", rule };
        }
        if (total > MAX_STEPS) {
            return bad_rule { "can begin in too many ways", rule };
        }
    }
    return std::nullopt;
}

static std::vector<bool> find_reached(const llama_grammar_rules & rules, size_t root) {
    std::vector<bool>   res(rules.size());
    std::vector<size_t> todo = { root };
    while (!todo.empty()) {
        const size_t rule = todo.back();
        todo.pop_back();
        if (res[rule]) {
            continue;
        }
        res[rule] = true;
        for (const auto & elem : rules[rule]) {
            if (elem.type == LLAMA_GRETYPE_RULE_REF) {
                todo.push_back(elem.value);
            }
        }
    }
    return res;
}

// what the sampler meets when it goes from one token to the next, in the rules that it can reach
static std::optional<bad_rule> check_stacks(const llama_grammar_rules & rules, size_t root) {
    const auto nullable = find_nullable(rules);
    const auto reached  = find_reached(rules, root);

    std::vector<size_t> n_tokens;
    const edges      next = find_edges(rules, nullable, n_tokens);
    const components comp(next);

    std::vector<double> n_stacks(comp.all.size()); // at most

    for (size_t i = 0; i < comp.all.size(); ++i) {
        bool can_end = false;
        for (const size_t rule : comp.all[i]) {
            can_end = can_end || nullable[rule];
            n_stacks[i] += n_tokens[rule];
            for (const auto & e : next[rule]) {
                const size_t to = comp.of[e.to];
                if (to == i && !e.is_last && reached[rule]) {
                    return bad_rule { "begins with itself behind what can be left out (left recursion)", rule };
                }
                n_stacks[i] += to == i ? 0 : n_stacks[to];
            }
        }
        const size_t rule = comp.all[i][0];
        if (!reached[rule]) {
            continue;
        }
        if (n_stacks[i] == 0 && !can_end) {
            return bad_rule { "cannot begin: all that it can begin with is itself", rule };
        }
        if (n_stacks[i] > LLAMA_SELF_EXTEND_GRAMMAR_MAX_STACKS) {
            return bad_rule { "can begin in too many ways", rule };
        }
    }
    return std::nullopt;
}

std::optional<bad_rule> llama_self_extend_grammar_check_rules(const llama_grammar_rules & rules, size_t root) {
    if (auto bad = check_search(rules)) {
        return bad;
    }
    return check_stacks(rules, root);
}
