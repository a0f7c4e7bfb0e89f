#include "params/llama-self-extend-params.h"

#include "llama-model.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>

//
// per-thread state
//

static thread_local std::optional<llama_self_extend_params> self_extend_next;   // set, not yet consumed
static thread_local std::optional<llama_self_extend_config> self_extend_active; // of the context that is being created
static thread_local std::string                             self_extend_error;

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

//
// the context that is being created
//

static constexpr uint32_t GA_W_MAX = 2048; // of the default: near keys are kept twice

// check the pending parameters against the model and the context parameters
static bool resolve(
        const llama_self_extend_params & next,
                   const llama_model   & model,
        const llama_context_params     & params,
        llama_self_extend_config       & config) {
    const uint32_t n_ctx_train = model.hparams.n_ctx_train;
    const uint32_t ga_n_max    = std::max(next.ga_n, next.ga_n_max);
    const bool     has_window  = llama_self_extend_map { ga_n_max, 0, next.map }.has_window();
    const uint32_t ga_w        = next.ga_w != LLAMA_SELF_EXTEND_GA_W_DEFAULT ? next.ga_w : has_window ? std::min(n_ctx_train/8, GA_W_MAX) : 0;

    if (ga_w >= n_ctx_train) {
        set_error("ga_w is %u, it must be below the trained context of the model, %u tokens", ga_w, n_ctx_train);
        return false;
    }

    const llama_self_extend_map last = { ga_n_max, ga_w, next.map };

    config = {
        /*.map         =*/ { next.ga_n, ga_w, next.map },
        /*.ga_n_max    =*/ ga_n_max,
        /*.attn        =*/ next.attn,
        /*.n_ctx_train =*/ n_ctx_train,
        /*.n_ctx_reach =*/ last.n_ctx_reach(n_ctx_train),
    };

    // sequences that share one buffer may each be shorter than it; their positions are checked as they come
    const uint32_t n_seq_max = std::max(1u, params.n_seq_max);
    const uint32_t n_ctx     = params.n_ctx == 0 ? n_ctx_train : params.n_ctx;
    const uint32_t n_ctx_seq = params.kv_unified && n_seq_max > 1 ? 0 : n_ctx/n_seq_max;

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

    if (!next || std::max(next->ga_n, next->ga_n_max) == 1 || !model) {
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

bool llama_self_extend_set_next(llama_self_extend_params params) {
    if (params.map < LLAMA_SELF_EXTEND_MAP_SELF_EXTEND || params.map > LLAMA_SELF_EXTEND_MAP_MRROPE) {
        set_error("map is %d, it must be one of the values of llama_self_extend_map_type", (int) params.map);
        return false;
    }
    if (std::max(params.ga_n, params.ga_n_max) > 1) { // 1 is the plain model, whatever the map
        if (!check_group("ga_n", params.ga_n, params.map) || (params.ga_n_max && !check_group("ga_n_max", params.ga_n_max, params.map))) {
            return false;
        }
    } else if (params.ga_n < 1) {
        set_error("ga_n is 0, it must be at least 1");
        return false;
    }

    const llama_self_extend_map map = { params.ga_n, 0, params.map };

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

    llama_self_extend_accept();
    self_extend_next = params;

    return true;
}

const char * llama_self_extend_last_error(void) {
    return self_extend_error.c_str();
}
