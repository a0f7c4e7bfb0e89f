#include "params/llama-self-extend-params.h"

#include "llama-model.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

//
// per-thread state
//

static thread_local std::optional<llama_self_extend_default> self_extend_next;   // set, not yet consumed
static thread_local std::optional<llama_self_extend_config>  self_extend_active; // of the context that is being created
static thread_local std::string                              self_extend_error;

//
// of the process
//

static std::mutex                               self_extend_mutex;
static std::optional<llama_self_extend_default> self_extend_default;

static std::string vformat(const char * fmt, va_list args) {
    char buf[512];
    vsnprintf(buf, sizeof(buf), fmt, args);
    return buf;
}

// keep and log a reason
LLAMA_ATTRIBUTE_FORMAT(1, 2)
static void set_error(const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    self_extend_error = vformat(fmt, args);
    va_end(args);

    LLAMA_LOG_ERROR("self_extend: %s\n", self_extend_error.c_str());
}

void llama_self_extend_refuse(const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    self_extend_error = vformat(fmt, args);
    va_end(args);

    throw std::runtime_error(self_extend_error);
}

void llama_self_extend_accept() {
    self_extend_error.clear();
}

void llama_self_extend_explain(const std::string & reason) {
    self_extend_error = reason;
}

//
// the context that is being created
//

static constexpr uint32_t GA_W_MAX = 2048; // of the default: near keys are kept twice

uint32_t llama_self_extend_n_ctx_seq(const llama_model & model, const llama_context_params & params) {
    const uint32_t n_ctx = params.n_ctx == 0 ? model.hparams.n_ctx_train : params.n_ctx;

    return params.kv_unified ? n_ctx : n_ctx/std::max(1u, params.n_seq_max);
}

static bool is_auto(const llama_self_extend_params & params) {
    return params.ga_n_max == LLAMA_SELF_EXTEND_GA_N_MAX_AUTO;
}

// check the pending parameters against the model and the context parameters
static bool resolve(
        const llama_self_extend_default & pending,
                   const llama_model    & model,
        const llama_context_params      & params,
        llama_self_extend_config        & config) {
    const auto & next = pending.params;

    const uint32_t n_ctx_train = model.hparams.n_ctx_train;
    const bool     has_window  = llama_self_extend_map { next.ga_n, 0, next.map }.has_window();
    const uint32_t ga_w        = next.ga_w != LLAMA_SELF_EXTEND_GA_W_DEFAULT ? next.ga_w : has_window ? std::min(n_ctx_train/8, GA_W_MAX) : 0;

    if (ga_w >= n_ctx_train) {
        set_error("ga_w is %u, it must be below the trained context of the model, %u tokens", ga_w, n_ctx_train);
        return false;
    }

    const llama_self_extend_map first = { next.ga_n, ga_w, next.map };

    uint32_t n_ctx_seq = llama_self_extend_n_ctx_seq(model, params);

    const llama_self_extend_policy policy = { first, n_ctx_train, n_ctx_seq, pending.steps };

    const uint32_t ga_n_max = is_auto(next) ? policy.ga_n_max() : std::max(next.ga_n, next.ga_n_max);

    const llama_self_extend_map last = { ga_n_max, ga_w, next.map };

    config = {
        /*.map         =*/ first,
        /*.ga_n_max    =*/ ga_n_max,
        /*.attn        =*/ next.attn,
        /*.n_ctx_train =*/ n_ctx_train,
        /*.n_ctx_reach =*/ last.n_ctx_reach(n_ctx_train),
        /*.policy      =*/ is_auto(next) ? std::make_optional(policy) : std::nullopt,
    };

    // sequences that share one buffer may each be shorter than it; their positions are checked as they come
    if (params.kv_unified && params.n_seq_max > 1) {
        n_ctx_seq = 0;
    }

    if (n_ctx_seq > config.n_ctx_reach) {
        const uint32_t ga_n_min = llama_self_extend_map_ga_n_min(last, n_ctx_train, n_ctx_seq);

        set_error("n_ctx is %u, but ga_n = %u and ga_w = %u reach %" PRId64 " tokens on this model, which was trained on %u; "
                "the smallest ga_n that fits is %u", n_ctx_seq, ga_n_max, ga_w, config.n_ctx_reach, n_ctx_train, ga_n_min);
        return false;
    }

    return true;
}

llama_self_extend_scope::llama_self_extend_scope(const llama_model * model, const llama_context_params & params) {
    const auto next = self_extend_next;

    self_extend_next.reset();
    self_extend_error.clear();

    if (!next || std::max(next->params.ga_n, next->params.ga_n_max) == 1 || !model) {
        return;
    }

    llama_self_extend_config config;

    ok = resolve(*next, *model, params, config);

    if (ok) {
        self_extend_active = config;
    }
}

llama_self_extend_scope::~llama_self_extend_scope() {
    self_extend_active.reset();
}

const llama_self_extend_config * llama_self_extend_get_active() {
    return self_extend_active ? &*self_extend_active : nullptr;
}

//
// interface
//

llama_self_extend_params llama_self_extend_default_params(void) {
    return {
        /*.ga_n     =*/ 1,
        /*.ga_n_max =*/ 0,
        /*.ga_w     =*/ LLAMA_SELF_EXTEND_GA_W_DEFAULT,
        /*.attn     =*/ LLAMA_SELF_EXTEND_ATTN_AUTO,
        /*.map      =*/ LLAMA_SELF_EXTEND_MAP_SELF_EXTEND,
    };
}

static bool check_group(const char * name, uint32_t ga_n, llama_self_extend_map_type map) {
    const char * fault = llama_self_extend_map { ga_n, 0, map }.find_fault();

    if (fault) {
        set_error("%s is %u, it must be %s", name, ga_n, fault);
    }
    return !fault;
}

static bool check_params(const llama_self_extend_params & params) {
    const llama_self_extend_map map = { params.ga_n, 0, params.map };

    if (params.map < LLAMA_SELF_EXTEND_MAP_SELF_EXTEND || params.map > LLAMA_SELF_EXTEND_MAP_MRROPE) {
        set_error("map is %d, it must be one of the values of llama_self_extend_map_type", (int) params.map);
        return false;
    }
    if (std::max(params.ga_n, params.ga_n_max) > 1) { // 1 is the plain model, whatever the map
        const uint32_t ga_n_max = is_auto(params) ? 0 : params.ga_n_max;

        if (!check_group("ga_n", params.ga_n, params.map) || (ga_n_max && !check_group("ga_n_max", ga_n_max, params.map))) {
            return false;
        }
    } else if (params.ga_n < 1) {
        set_error("ga_n is 0, it must be at least 1");
        return false;
    }
    if (is_auto(params) && params.ga_n != map.n_unit()) {
        set_error("ga_n is %u, it must be %u, the plain model's, where ga_n_max is left to the length of the text", params.ga_n, map.n_unit());
        return false;
    }
    if (!map.has_window() && params.ga_w != 0 && params.ga_w != LLAMA_SELF_EXTEND_GA_W_DEFAULT) {
        set_error("ga_w is %u, it must be 0 with this map, which has no near keys", params.ga_w);
        return false;
    }
    if (!map.follows() && params.ga_n_max > params.ga_n) {
        set_error("ga_n_max is %u, it must be 0 with this map, whose group size cannot change", params.ga_n_max);
        return false;
    }
    if (params.ga_n_max != 0 && params.ga_n_max < params.ga_n) {
        set_error("ga_n_max is %u, it must be 0 or at least ga_n, %u", params.ga_n_max, params.ga_n);
        return false;
    }
    if (params.attn < LLAMA_SELF_EXTEND_ATTN_AUTO || params.attn > LLAMA_SELF_EXTEND_ATTN_COMPOSED) {
        set_error("attn is %d, it must be one of the values of llama_self_extend_attn", (int) params.attn);
        return false;
    }

    return true;
}

// steps with no group size of the map, or not of ascending lengths
static bool check_steps(const llama_self_extend_default & given) {
    int64_t n_last = 0;

    for (const auto & step : given.steps) {
        if (!check_group("ga_n of a step", step.ga_n, given.params.map)) {
            return false;
        }
        if (step.n_tokens <= n_last) {
            set_error("n_tokens of a step is %" PRId64 ", it must be above that of the step before, %" PRId64, step.n_tokens, n_last);
            return false;
        }
        n_last = step.n_tokens;
    }
    if (!given.steps.empty() && !is_auto(given.params)) {
        set_error("there are steps, but ga_n_max is %u and not left to the length of the text", given.params.ga_n_max);
        return false;
    }

    return true;
}

bool llama_self_extend_set_next(const llama_self_extend_default & next) {
    if (!check_params(next.params)) {
        return false;
    }

    llama_self_extend_accept();
    self_extend_next = next;

    return true;
}

bool llama_self_extend_set_next(llama_self_extend_params params) {
    return llama_self_extend_set_next(llama_self_extend_default { params, {} });
}

bool llama_self_extend_set_default(const llama_self_extend_params * params, const llama_self_extend_step * steps, int32_t n_steps) {
    std::optional<llama_self_extend_default> given;

    if (params) {
        given = { *params, { steps, steps + std::max(0, n_steps) } };

        if (!check_params(given->params) || !check_steps(*given)) {
            return false;
        }
    }

    llama_self_extend_accept();

    const std::lock_guard<std::mutex> lock(self_extend_mutex);

    self_extend_default = std::move(given);

    return true;
}

std::optional<llama_self_extend_default> llama_self_extend_get_default() {
    const std::lock_guard<std::mutex> lock(self_extend_mutex);

    return self_extend_default;
}

const char * llama_self_extend_last_error(void) {
    return self_extend_error.c_str();
}
