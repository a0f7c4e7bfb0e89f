#include "positions/llama-self-extend-positions.h"

#include <algorithm>
#include <cmath>

int64_t llama_self_extend_map::pos_q(int64_t pos) const {
    switch (type) {
        case LLAMA_SELF_EXTEND_MAP_JET_LONG:
            return pos/ga_n;
        case LLAMA_SELF_EXTEND_MAP_REROPE:
            return ga_n == 1 ? pos : ga_w;
        case LLAMA_SELF_EXTEND_MAP_LEAKY:
        case LLAMA_SELF_EXTEND_MAP_MRROPE:
            return pos + int64_t(ga_w)*(ga_n - 1);
        default:
            return pos*n_unit()/ga_n + ga_w - int64_t(ga_w)*n_unit()/ga_n;
    }
}

int64_t llama_self_extend_map::pos_k(int64_t pos) const {
    switch (type) {
        case LLAMA_SELF_EXTEND_MAP_REROPE:
            return ga_n == 1 ? pos : 0;
        case LLAMA_SELF_EXTEND_MAP_LEAKY:
        case LLAMA_SELF_EXTEND_MAP_MRROPE:
            return pos;
        default:
            return pos*n_unit()/ga_n;
    }
}

uint32_t llama_self_extend_map::pos_den() const {
    return has_freqs() ? ga_n : 1;
}

// the pair that turns n_turns times over the trained context, not rounded; ref: YaRN, arXiv 2309.00071, section 3.2
static double yarn_corr_dim(double n_turns, int64_t n_rot, double freq_base, uint32_t n_ctx_train) {
    return n_rot*std::log(n_ctx_train/(n_turns*2.0*3.14159265358979323846))/(2.0*std::log(freq_base));
}

double llama_self_extend_map::freq_scale(int64_t i, int64_t n_rot, double freq_base, uint32_t n_ctx_train) const {
    if (type != LLAMA_SELF_EXTEND_MAP_MRROPE) {
        return 1.0;
    }

    // fast pairs keep their angle, slow ones have it divided by ga_n, which pos_den() does for all. in between the factors between
    // neighbouring pairs grow
    const int64_t low  = std::max<int64_t>(std::floor(yarn_corr_dim(32.0, n_rot, freq_base, n_ctx_train)), 0);
    const int64_t high = std::min<int64_t>(std::ceil (yarn_corr_dim( 1.0, n_rot, freq_base, n_ctx_train)), n_rot - 1);

    const double t = i <= low ? 0.0 : i >= high ? 1.0 : double(i - low)*(i + 1 - low)/(double(high - low)*(high - low + 1));

    return std::pow(ga_n, 1.0 - t);
}

double llama_self_extend_map::magnitude() const {
    return type == LLAMA_SELF_EXTEND_MAP_MRROPE ? 0.1*std::log(ga_n) + 1.0 : 1.0;
}

int64_t llama_self_extend_map::pos_rel(int64_t pos_q, int64_t pos_k) const {
    return is_far(pos_q, pos_k) ? this->pos_q(pos_q) - this->pos_k(pos_k) : (pos_q - pos_k)*pos_den();
}

int64_t llama_self_extend_map::pos_rel_max(int64_t n_tokens) const {
    const int64_t near = (std::min<int64_t>(n_tokens, ga_w) - 1)*pos_den();

    // far ones do not fall with the distance
    return n_tokens <= int64_t(ga_w) ? near : std::max(near, pos_rel(n_tokens - 1, 0));
}

int64_t llama_self_extend_map::n_ctx_reach(uint32_t n_ctx_train) const {
    const int64_t n_step = int64_t(n_ctx_train) - ga_w;

    switch (type) {
        case LLAMA_SELF_EXTEND_MAP_JET_LONG:
            return int64_t(n_ctx_train)*ga_n;
        case LLAMA_SELF_EXTEND_MAP_REROPE:
            return ga_n == 1 ? n_ctx_train : INT32_MAX; // all that llama_pos counts
        case LLAMA_SELF_EXTEND_MAP_LEAKY:
        case LLAMA_SELF_EXTEND_MAP_MRROPE:
            return n_step*ga_n + ga_w;
        default:
            return ((n_step + int64_t(ga_w)*n_unit()/ga_n)*ga_n + n_unit() - 1)/n_unit();
    }
}

const char * llama_self_extend_map::find_fault() const {
    if (ga_n < n_unit()) {
        return n_unit() == 1 ? "at least 1" : "at least 64: this map counts it in 64ths of a token";
    }
    if (type == LLAMA_SELF_EXTEND_MAP_LEAKY && (ga_n & (ga_n - 1)) != 0) {
        return "a power of two with this map";
    }

    return nullptr;
}

static uint32_t power_from(uint64_t ga_n) {
    uint64_t res = 1;
    while (res < ga_n) {
        res *= 2;
    }
    return std::min<uint64_t>(res, UINT32_MAX);
}

static uint32_t power_above(uint32_t ga_n) {
    return power_from(uint64_t(ga_n) + 1);
}

uint32_t llama_self_extend_map_raised(const llama_self_extend_map & map, uint32_t n_ctx_train, uint32_t ga_n_max, int64_t n_tokens) {
    if (map.ga_w >= n_ctx_train) {
        return 0;
    }

    auto res = map;

    while (res.n_ctx_reach(n_ctx_train) < n_tokens) {
        if (res.ga_n >= ga_n_max) {
            return 0;
        }
        res.ga_n = std::min(power_above(res.ga_n), ga_n_max);
    }

    return res.ga_n;
}

uint32_t llama_self_extend_map_ga_n_min(const llama_self_extend_map & map, uint32_t n_ctx_train, int64_t n_tokens) {
    if (map.ga_w >= n_ctx_train) {
        return 0;
    }

    // the reach is below ga_n*n_step + ga_w + 1, and with an even map below ga_n*n_ctx_train + 1. floors make it rise unevenly, so start
    // where these bounds allow and walk up
    const bool    is_even = map.type == LLAMA_SELF_EXTEND_MAP_JET_LONG;
    const int64_t n_step  = int64_t(n_ctx_train) - (is_even ? 0 : map.ga_w);
    const int64_t n_far   = n_tokens - 1         - (is_even ? 0 : map.ga_w);

    auto res = map;

    if (map.type == LLAMA_SELF_EXTEND_MAP_REROPE) {
        return n_tokens <= n_ctx_train ? 1 : n_tokens <= INT32_MAX ? 2 : 0;
    }

    const int64_t first = n_far <= 0 ? 1 : n_far*map.n_unit()/n_step + 1;

    for (int64_t ga_n = std::max<int64_t>(map.n_unit(), first); ga_n <= UINT32_MAX; ++ga_n) {
        res.ga_n = ga_n;

        if (res.find_fault()) {
            res.ga_n = power_above(res.ga_n);
        }
        if (res.n_ctx_reach(n_ctx_train) >= n_tokens) {
            return res.ga_n;
        }
    }

    return 0;
}

uint32_t llama_self_extend_map_ga_n_auto(const llama_self_extend_map & map, uint32_t n_ctx_train, int64_t n_tokens) {
    auto res = map;

    if (map.ga_w >= n_ctx_train) {
        return 0;
    }
    if (n_tokens <= n_ctx_train) {
        return map.n_unit();
    }

    // W + (N - W)/G < 2/3 L, in thirds
    const int64_t n_room = 2*int64_t(n_ctx_train) - 3*int64_t(map.ga_w);
    const int64_t n_far  = n_tokens - map.ga_w;

    const bool is_ruled = map.type == LLAMA_SELF_EXTEND_MAP_SELF_EXTEND || map.type == LLAMA_SELF_EXTEND_MAP_LEAKY ||
                          map.type == LLAMA_SELF_EXTEND_MAP_LAMPE;

    const int64_t ga_n = is_ruled && n_room > 0 ? 3*n_far*map.n_unit()/n_room + 1 : llama_self_extend_map_ga_n_min(map, n_ctx_train, n_tokens);

    if (ga_n == 0 || ga_n > UINT32_MAX) {
        return 0;
    }

    res.ga_n = std::max<int64_t>(map.n_unit() + 1, ga_n);

    if (map.type == LLAMA_SELF_EXTEND_MAP_SELF_EXTEND || res.find_fault()) {
        res.ga_n = power_from(res.ga_n);
    }

    return llama_self_extend_map_raised(res, n_ctx_train, UINT32_MAX, n_tokens);
}
