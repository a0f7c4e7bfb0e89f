// the arithmetic of all maps against their definitions, pair by pair

#include "positions/llama-self-extend-positions.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

static int n_failed = 0;
static int n_pairs  = 0;

static void check(bool ok, const char * what, const llama_self_extend_map & map, int64_t n, double got, double expected) {
    if (!ok) {
        n_failed++;
        fprintf(stderr, "%s: map %d, ga_n = %u, ga_w = %u, n = %lld: got %g, expected %g\n", what,
                (int) map.type, map.ga_n, map.ga_w, (long long) n, got, expected);
    }
}

// in positions, as the sources have it. all values are exact in a double
static double rel_by_definition(int64_t q, int64_t k, const llama_self_extend_map & map) {
    const double g = map.ga_n;
    const double w = map.ga_w;

    if (q - k < map.ga_w) {
        return q - k;
    }

    switch (map.type) {
        case LLAMA_SELF_EXTEND_MAP_JET_LONG: return q/map.ga_n - k/map.ga_n;
        case LLAMA_SELF_EXTEND_MAP_REROPE:   return map.ga_n == 1 ? q - k : w;
        case LLAMA_SELF_EXTEND_MAP_LEAKY:    return w + (q - k - w)/g;
        case LLAMA_SELF_EXTEND_MAP_LAMPE:    return std::floor(q*64/g) + w - std::floor(w*64/g) - std::floor(k*64/g);
        case LLAMA_SELF_EXTEND_MAP_MRROPE:   return (q - k)/g;
        default:                             return std::floor(q/g) + w - std::floor(w/g) - std::floor(k/g);
    }
}

static bool is_close(double a, double b) {
    return std::fabs(a - b) <= 1e-9*std::max(1.0, std::fabs(b));
}

static void test_pairs(const llama_self_extend_map & map) {
    double rel_max = 0;

    for (int64_t q = 0; q < 200; ++q) {
        for (int64_t k = 0; k <= q; ++k) {
            const double expected = rel_by_definition(q, k, map);
            const double got      = double(map.pos_rel(q, k))/map.pos_den();

            check(is_close(got, expected), "pos_rel", map, q, got, expected);

            if (map.is_far(q, k)) {
                const double frames = double(map.pos_q(q, 4*map.pos_den()) - map.pos_k(k, 4*map.pos_den()))/(4.0*map.pos_den());

                check(is_close(frames, expected), "frames", map, q, frames, expected);
            }

            rel_max = std::max(rel_max, expected);
            n_pairs++;
        }

        const double got = double(map.pos_rel_max(q + 1))/map.pos_den();
        check(is_close(got, rel_max), "pos_rel_max", map, q + 1, got, rel_max);
    }
}

// the reach is where the largest relative position arrives at the trained context, and the smallest group is the first that gets there
static void test_reach(const llama_self_extend_map & map) {
    for (uint32_t n_ctx_train = map.ga_w + 1; n_ctx_train < map.ga_w + 12; ++n_ctx_train) {
        const int64_t reach = map.n_ctx_reach(n_ctx_train);
        const int64_t limit = int64_t(n_ctx_train)*map.pos_den();

        check(map.pos_rel_max(reach) < limit, "n_ctx_reach", map, n_ctx_train, map.pos_rel_max(reach), limit - 1);

        if (reach < INT32_MAX) {
            check(map.pos_rel_max(reach + 1) >= limit, "n_ctx_reach + 1", map, n_ctx_train, map.pos_rel_max(reach + 1), limit);
        }

        llama_self_extend_map expected = { map.n_unit(), map.ga_w, map.type };
        while (expected.find_fault() || expected.n_ctx_reach(n_ctx_train) < reach) {
            expected.ga_n++;
        }

        const uint32_t got = llama_self_extend_map_ga_n_min(map, n_ctx_train, reach);
        check(got == expected.ga_n, "ga_n_min", map, n_ctx_train, got, expected.ga_n);
    }
}

static void test_map(const llama_self_extend_map & map) {
    check(!map.find_fault(), "find_fault", map, 0, 1, 0);
    test_pairs(map);
    test_reach(map);
}

// the frequencies of MrRoPE: those of fast pairs stay, those of slow ones are divided, and the factors between neighbours grow
static void test_freqs() {
    constexpr int64_t n_rot = 64;

    const llama_self_extend_map map = { 4, 0, LLAMA_SELF_EXTEND_MAP_MRROPE };

    double before = 1.0;
    double step   = 1.0;
    int    n_same = 0;
    int    n_slow = 0;

    for (int64_t i = 0; i < n_rot/2; ++i) {
        // in how far the angle is divided: 1 to ga_n
        const double by = map.ga_n/map.freq_scale(i, n_rot, 10000.0, 2048);

        // turns of the pair over the trained context
        const double n_turns = 2048*std::pow(10000.0, -2.0*i/n_rot)/(2.0*3.14159265358979323846);

        check(n_turns < 32.0 || by == 1.0, "freq_scale of a fast pair", map, i, by, 1.0);
        check(n_turns > 1.0 || is_close(by, map.ga_n), "freq_scale of a slow pair", map, i, by, map.ga_n);
        check(by == map.ga_n || by/before >= step, "freq_scale", map, i, by/before, step);

        step    = by/before;
        before  = by;
        n_same += by == 1.0;
        n_slow += is_close(by, map.ga_n);
    }

    check(n_same > 0 && n_slow > 0 && n_same + n_slow < n_rot/2, "freq_scale", map, n_rot, n_same, n_slow);
    check(is_close(map.magnitude(), 0.1*std::log(4.0) + 1.0), "magnitude", map, 0, map.magnitude(), 0);
}

int main() {
    const std::vector<uint32_t> whole  = { 1, 2, 3, 4, 5, 8, 16 };
    const std::vector<uint32_t> powers = { 1, 2, 4, 8, 16 };
    const std::vector<uint32_t> parts  = { 64, 65, 80, 96, 127, 128, 200, 1024 };

    for (uint32_t ga_w : { 0, 1, 3, 4, 7, 16, 33, 64 }) {
        for (auto type : { LLAMA_SELF_EXTEND_MAP_SELF_EXTEND, LLAMA_SELF_EXTEND_MAP_JET_LONG, LLAMA_SELF_EXTEND_MAP_REROPE }) {
            for (uint32_t ga_n : whole) {
                test_map({ ga_n, ga_w, type });
            }
        }
        for (uint32_t ga_n : powers) {
            test_map({ ga_n, ga_w, LLAMA_SELF_EXTEND_MAP_LEAKY });
        }
        for (uint32_t ga_n : parts) {
            test_map({ ga_n, ga_w, LLAMA_SELF_EXTEND_MAP_LAMPE });
        }
    }
    for (uint32_t ga_n : whole) {
        test_map({ ga_n, 0, LLAMA_SELF_EXTEND_MAP_MRROPE });
    }

    test_freqs();

    printf("%d pairs, %d failures\n", n_pairs, n_failed);

    return n_failed == 0 ? 0 : 1;
}
