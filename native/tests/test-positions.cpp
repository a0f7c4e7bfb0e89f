// the arithmetic against its definition, pair by pair

#include "positions/llama-self-extend-positions.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

static int n_failed = 0;

static void check(bool ok, const char * what, int64_t ga_n, int64_t ga_w, int64_t n, int64_t got, int64_t expected) {
    if (!ok) {
        n_failed++;
        fprintf(stderr, "%s: ga_n = %lld, ga_w = %lld, n = %lld: got %lld, expected %lld\n", what,
                (long long) ga_n, (long long) ga_w, (long long) n, (long long) got, (long long) expected);
    }
}

static int64_t rel_by_definition(int64_t q, int64_t k, int64_t ga_n, int64_t ga_w) {
    return q - k < ga_w ? q - k : (q/ga_n + ga_w - ga_w/ga_n) - k/ga_n;
}

int main() {
    int n_pairs = 0;

    for (uint32_t ga_n : { 1, 2, 3, 4, 5, 8, 16 }) {
        for (uint32_t ga_w : { 0, 1, 3, 4, 7, 16, 33, 64 }) {
            const llama_self_extend_map map = { ga_n, ga_w };

            int64_t rel_max = 0;

            for (int64_t q = 0; q < 200; ++q) {
                for (int64_t k = 0; k <= q; ++k) {
                    const int64_t expected = rel_by_definition(q, k, ga_n, ga_w);
                    const int64_t got      = map.pos_rel(q, k);

                    check(got == expected, "pos_rel", ga_n, ga_w, q, got, expected);

                    if (map.is_far(q, k)) {
                        check(map.pos_q(q) - map.pos_k(k) == expected, "frames", ga_n, ga_w, q, map.pos_q(q) - map.pos_k(k), expected);
                    }

                    rel_max = std::max(rel_max, expected);
                    n_pairs++;
                }

                check(map.pos_rel_max(q + 1) == rel_max, "pos_rel_max", ga_n, ga_w, q + 1, map.pos_rel_max(q + 1), rel_max);
            }

            // the reach is where the largest relative position arrives at the trained context, and the smallest group is the first that gets there
            for (uint32_t n_ctx_train = ga_w + 1; n_ctx_train < ga_w + 12; ++n_ctx_train) {
                const int64_t reach = map.n_ctx_reach(n_ctx_train);

                check(map.pos_rel_max(reach)     <  n_ctx_train, "n_ctx_reach",     ga_n, ga_w, n_ctx_train, map.pos_rel_max(reach),     n_ctx_train - 1);
                check(map.pos_rel_max(reach + 1) >= n_ctx_train, "n_ctx_reach + 1", ga_n, ga_w, n_ctx_train, map.pos_rel_max(reach + 1), n_ctx_train);

                uint32_t expected = 1;
                while (llama_self_extend_map { expected, ga_w }.n_ctx_reach(n_ctx_train) < reach) {
                    expected++;
                }

                const uint32_t got = llama_self_extend_map_ga_n_min(n_ctx_train, ga_w, reach);
                check(got == expected, "ga_n_min", ga_n, ga_w, n_ctx_train, got, expected);
            }
        }
    }

    printf("%d pairs, %d failures\n", n_pairs, n_failed);

    return n_failed == 0 ? 0 : 1;
}
