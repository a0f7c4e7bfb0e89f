#include "server/llama-self-extend-cli.h"

#include "console.h"

#include <algorithm>
#include <cstdio>

#ifdef _WIN32
#  include <io.h>
#  define isatty _isatty
#  define fileno _fileno
#else
#  include <unistd.h>
#endif

// what takes less time is not worth a line, in ms
static constexpr double T_SHORT = 1000.0;

static std::string with_commas(int64_t n) {
    auto res = std::to_string(n);

    for (int64_t at = int64_t(res.size()) - 3; at > 0; at -= 3) {
        res.insert(at, ",");
    }
    return res;
}

static std::string duration(double seconds) {
    const auto all = int64_t(seconds + 0.5);

    char res[32];
    snprintf(res, sizeof(res), "%d:%02d", int(all / 60), int(all % 60));
    return res;
}

void llama_self_extend_gauge::set_props(const common_json & props) {
    if (props.contains("default_generation_settings")) {
        n_ctx = props.at("default_generation_settings").value("n_ctx", int64_t(0));
    }
    if (props.contains("self_extend")) {
        n_ctx_train = props.at("self_extend").value("n_ctx_train", int64_t(0));
    }
}

void llama_self_extend_gauge::update(const common_json & chunk) {
    if (chunk.contains("prompt_progress")) {
        const auto & progress = chunk.at("prompt_progress");

        const auto   n_total = progress.value("total",     int64_t(0));
        const auto   n_cache = progress.value("cache",     int64_t(0));
        const auto   n_read  = progress.value("processed", int64_t(0));
        const double t_ms    = progress.value("time_ms",   0.0);

        if (n_read > n_cache && n_read < n_total && t_ms > T_SHORT && isatty(fileno(stdout))) {
            console::log("\r\033[Kreading: %d%% of %s tokens, %s left", int(100*n_read/n_total), with_commas(n_total).c_str(),
                duration(t_ms*(n_total - n_read)/(n_read - n_cache)/1000.0).c_str());
            console::flush();
            is_shown = true;
        }
    }

    if (chunk.contains("timings")) {
        const auto & timings = chunk.at("timings");

        n_used = timings.value("cache_n", int64_t(0)) + timings.value("prompt_n", int64_t(0)) + timings.value("predicted_n", int64_t(0));
        ga_n   = timings.value("ga_n", int64_t(0));
    }
}

void llama_self_extend_gauge::clear() {
    if (is_shown) {
        console::log("\r\033[K");
        is_shown = false;
    }
}

std::string llama_self_extend_gauge::prompt() const {
    if (n_used == 0 || n_ctx == 0) {
        return "\n> ";
    }

    auto res = "\n[" + with_commas(n_used) + " of " + with_commas(n_ctx) + " tokens";

    if (n_ctx_train > 0 && n_ctx > n_ctx_train) {
        res += n_used > n_ctx_train ? ", " + with_commas(n_used - n_ctx_train) + " beyond the trained " + with_commas(n_ctx_train)
                                    : ", trained on " + with_commas(n_ctx_train);
        if (ga_n > 1) {
            res += ", group size " + std::to_string(ga_n);
        }
    }
    return res + "]\n> ";
}
