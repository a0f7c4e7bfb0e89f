#include "server/llama-self-extend-server.h"

#include "server/llama-self-extend-args.h"

#include <algorithm>
#include <sstream>
#include <utility>

// an answer whose length nobody has said; as in pyselfextend.groups
static constexpr int32_t N_ANSWER = 256;

static int32_t n_ctx_train(const llama_context * ctx) {
    return llama_model_n_ctx_train(llama_get_model(ctx));
}

// a plain context has group 1, and reaches as far as it was trained
static llama_self_extend_info info_of(const llama_context * ctx) {
    llama_self_extend_info info;

    if (!llama_self_extend_get_info(ctx, &info)) {
        info.n_ctx_train = n_ctx_train(ctx);
        info.n_ctx_reach = info.n_ctx_train;
        info.ga_n_max    = 1;
    }

    return info;
}

static uint32_t group_of(const llama_context * ctx, llama_seq_id seq_id) {
    return std::max(1u, llama_self_extend_get_group(ctx, seq_id));
}

int32_t llama_self_extend_n_ctx_slot(const llama_context * ctx) {
    return std::min<uint64_t>(info_of(ctx).n_ctx_reach, INT32_MAX);
}

int32_t llama_self_extend_begin(
        llama_context * ctx_tgt, llama_context * ctx_dft, llama_seq_id seq_id, int32_t n_past, int32_t n_tokens, int32_t n_predict) {
    const int64_t n_all = int64_t(n_tokens) + (n_predict < 0 ? N_ANSWER : n_predict);

    int32_t res = llama_self_extend_follow(ctx_tgt, seq_id, n_past, n_all);

    if (ctx_dft && res > llama_self_extend_follow(ctx_dft, seq_id, res, n_all)) {
        res = llama_self_extend_follow(ctx_tgt, seq_id, 0, n_all);
    }

    return res;
}

common_json llama_self_extend_props(const llama_context * ctx) {
    common_json res;

    if (!ctx) {
        return res;
    }

    const auto info   = info_of(ctx);
    const auto reason = std::string(llama_self_extend_last_error());

    res["is_extended"] = info.n_bytes_far > 0;
    res["n_ctx_train"] = info.n_ctx_train;
    res["n_ctx_reach"] = info.n_ctx_reach;
    res["ga_n_max"]    = info.ga_n_max;

    if (info.n_bytes_far > 0) {
        res["ga_w"]             = info.ga_w;
        res["ga_map"]           = llama_self_extend_map_name(info.map);
        res["n_layer_fused"]    = info.n_layer_fused;
        res["n_layer_composed"] = info.n_layer_composed;
    } else if (!reason.empty()) {
        res["refused"] = reason;
    }

    return res;
}

std::string llama_self_extend_advice(const llama_context * ctx) {
    const auto n_train = std::to_string(n_ctx_train(ctx));

    if (llama_n_ctx_seq(ctx) > info_of(ctx).n_ctx_reach) {
        return "; the model was trained on " + n_train + " tokens, and this context does not go beyond them: /props says why";
    }
    return "; start the server with a larger --ctx, the model was trained on " + n_train + " tokens and is extended beyond";
}

common_json llama_self_extend_slot(const llama_context * ctx, llama_seq_id seq_id) {
    common_json res;

    res["ga_n"]        = group_of(ctx, seq_id);
    res["n_ctx_train"] = n_ctx_train(ctx);

    return res;
}

std::string llama_self_extend_metrics(const llama_context * ctx) {
    const auto info = info_of(ctx);

    std::ostringstream res;

    const auto begin = [&](const char * name, const char * about) {
        res << "# HELP llamacpp:" << name << ' ' << about << "\n# TYPE llamacpp:" << name << " gauge\n";
    };

    begin("n_ctx_train", "Context that the model was trained on, in tokens");
    res << "llamacpp:n_ctx_train " << info.n_ctx_train << '\n';

    begin("n_ctx_reach", "Longest text that the model is extended to, in tokens");
    res << "llamacpp:n_ctx_reach " << info.n_ctx_reach << '\n';

    begin("ga_n", "Group size of each slot, 1 for the plain model");
    for (uint32_t id = 0; id < llama_n_seq_max(ctx); ++id) {
        res << "llamacpp:ga_n{slot=\"" << id << "\"} " << group_of(ctx, id) << '\n';
    }

    return res.str();
}

void llama_self_extend_add_timings(common_json & timings, uint32_t ga_n, uint64_t n_discarded) {
    if (ga_n > 0) {
        timings["ga_n"] = ga_n;
    }
    if (n_discarded > 0) {
        timings["discarded_n"] = n_discarded;
    }
}
