#include "llama-self-extend.h"

#include "grammar/llama-self-extend-grammar.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

//
// llama.cpp's sampler of a grammar, which comes back where llama.cpp's ends the process
//

static thread_local llama_self_extend_grammar_fault grammar_fault;
static thread_local std::string                     grammar_error; // what the caller was given

struct free_grammar {
    void operator()(llama_grammar * grammar) const { llama_grammar_free_impl(grammar); }
};

struct sampler_grammar {
    const llama_vocab * vocab;
    std::string         text;
    std::string         root;

    std::unique_ptr<llama_grammar, free_grammar> grammar;

    std::string       failed;  // not empty: why it takes part no longer
    std::vector<bool> allowed; // by token, for the next one

    void reset() {
        grammar.reset(llama_grammar_init_impl(vocab, text.c_str(), root.c_str(), false, nullptr, 0, nullptr, 0));
        failed.clear();
    }

    void fail(const std::string & message) {
        failed        = message;
        grammar_fault = { message, -1 };
    }
};

static sampler_grammar & get(const llama_sampler * smpl) {
    return *(sampler_grammar *) smpl->ctx;
}

static const char * grammar_name(const llama_sampler * /*smpl*/) {
    return "grammar";
}

static void grammar_apply(llama_sampler * smpl, llama_token_data_array * cur_p) {
    auto & cur = get(smpl);

    if (!cur.failed.empty()) {
        cur.fail(cur.failed);
        return;
    }

    std::vector<float> logits(cur_p->size);
    std::transform(cur_p->data, cur_p->data + cur_p->size, logits.begin(), [](const auto & data) { return data.logit; });

    cur.allowed.assign(llama_vocab_n_tokens(cur.vocab), false);
    bool any = false;
    try {
        llama_grammar_apply_impl(*cur.grammar, cur_p);
        for (size_t i = 0; i < cur_p->size; ++i) {
            const bool is_allowed = cur_p->data[i].logit > -INFINITY;
            cur.allowed[cur_p->data[i].id] = is_allowed;
            any = any || is_allowed;
        }
        if (!any) {
            cur.fail("no token of the model's vocabulary that is left to choose from continues the text as the grammar wants it");
        }
    } catch (const std::exception & err) {
        cur.fail(err.what());
    }

    if (!cur.failed.empty()) { // the samplers behind it do not survive a choice of nothing
        for (size_t i = 0; i < cur_p->size; ++i) {
            cur_p->data[i].logit = logits[i];
        }
    }
}

static void grammar_accept(llama_sampler * smpl, llama_token token) {
    auto & cur = get(smpl);

    if (!cur.failed.empty()) {
        return;
    }
    if (token < 0 || (size_t) token >= cur.allowed.size() || !cur.allowed[token]) {
        cur.fail("the token " + std::to_string(token) + " was chosen, which the grammar does not allow");
        return;
    }
    try {
        llama_grammar_accept_impl(*cur.grammar, token);
    } catch (const std::exception & err) {
        cur.fail(err.what());
    }
}

static void grammar_reset(llama_sampler * smpl) {
    get(smpl).reset();
}

static void grammar_free(llama_sampler * smpl) {
    delete &get(smpl);
}

static llama_sampler * grammar_clone(const llama_sampler * smpl);

static llama_sampler_i grammar_i = {
    /*.name              =*/ grammar_name,
    /*.accept            =*/ grammar_accept,
    /*.apply             =*/ grammar_apply,
    /*.reset             =*/ grammar_reset,
    /*.clone             =*/ grammar_clone,
    /*.free              =*/ grammar_free,
    /*.backend_init      =*/ nullptr,
    /*.backend_accept    =*/ nullptr,
    /*.backend_apply     =*/ nullptr,
    /*.backend_set_input =*/ nullptr,
    /*.backend_reset     =*/ nullptr,
    /*.copy_state        =*/ nullptr,
};

static llama_sampler * grammar_clone(const llama_sampler * smpl) {
    const auto & cur = get(smpl);

    auto res = std::make_unique<sampler_grammar>();
    res->vocab   = cur.vocab;
    res->text    = cur.text;
    res->root    = cur.root;
    res->grammar.reset(llama_grammar_clone_impl(*cur.grammar));
    res->failed  = cur.failed;
    res->allowed = cur.allowed;

    return llama_sampler_init(&grammar_i, res.release());
}

//
// interface
//

void llama_self_extend_grammar_check_stacks(const llama_grammar_stacks & stacks) {
    if (stacks.size() > LLAMA_SELF_EXTEND_GRAMMAR_MAX_STACKS) {
        throw std::runtime_error(
            "the grammar can be read in too many ways: the text so far has " + std::to_string(stacks.size()) + " readings");
    }
}

bool llama_self_extend_grammar_check(const llama_vocab * vocab, const char * grammar, const char * root) {
    llama_grammar_parser parser(vocab);

    const auto fault = llama_self_extend_grammar_parse(parser, grammar, root);

    if (fault) {
        grammar_fault = *fault;
    }
    return !fault;
}

llama_sampler * llama_self_extend_sampler_init_grammar(const llama_vocab * vocab, const char * grammar, const char * root) {
    if (!llama_self_extend_grammar_check(vocab, grammar, root)) {
        return nullptr;
    }

    auto res = std::make_unique<sampler_grammar>();
    res->vocab = vocab;
    res->text  = grammar;
    res->root  = root;
    res->reset();
    if (!res->grammar) {
        grammar_fault = { "llama.cpp refuses it", -1 };
        return nullptr;
    }

    return llama_sampler_init(&grammar_i, res.release());
}

const char * llama_self_extend_grammar_error(int64_t * offset) {
    grammar_error = std::exchange(grammar_fault.message, {});
    *offset       = grammar_fault.offset;

    return grammar_error.c_str();
}
