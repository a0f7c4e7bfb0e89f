// The schedule of the fused attention on devices, run whole on the host: every cell that a row sees is computed exactly once,
// every partial result is written exactly once and where it is looked for, and the merge is one softmax over both parts. What
// a device does with tensor cores is a plain loop here.

#include "attention/cuda/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

struct test_case {
    int32_t n_stream;
    int32_t n_tps; // tokens of a stream
    int32_t n_head_kv;
    int32_t n_gqa;
    int32_t n_kv[2];
    int32_t ncols1;
    int32_t ncols2;
    int32_t n_cells; // of a block
    int32_t n_workers_max;
    int32_t kind; // of ranges
    bool    sinks;
};

enum { RANGES_CAUSAL, RANGES_RANDOM, RANGES_SPARSE, N_KINDS };

// maximum and sum, as float2
struct meta_t {
    float x;
    float y;
};

struct partial {
    int                 n_written = 0;
    std::vector<meta_t> meta;  // [n_rows]
    std::vector<float>  value; // [n_rows]
};

constexpr int32_t GA_W = 96;

static std::vector<llama_self_extend_range> make_ranges(const test_case & tc, std::mt19937 & rng) {
    std::vector<llama_self_extend_range> res(tc.n_stream*tc.n_tps);

    const auto span = [&](int32_t n, int32_t & begin, int32_t & end) {
        begin = rng() % n;
        end   = begin + rng() % (n - begin + 1);
        if (rng() % 4 == 0 || (tc.kind == RANGES_SPARSE && rng() % 8 != 0)) {
            begin = end = 0;
        }
    };

    for (int32_t s = 0; s < tc.n_stream; ++s) {
        const int32_t depth = rng() % (tc.n_kv[0] + 1);

        for (int32_t t = 0; t < tc.n_tps; ++t) {
            auto & range = res[s*tc.n_tps + t];

            range = {};

            if (tc.kind == RANGES_CAUSAL) {
                const int32_t pos = depth + t;

                range.far_end    = std::clamp(pos - GA_W + 1, 0, tc.n_kv[0]);
                range.near_begin = std::clamp(t + 1,          0, tc.n_kv[1]);
                range.near_end   = std::clamp(GA_W + t + 1,   0, tc.n_kv[1]);
            } else {
                span(tc.n_kv[0], range.far_begin,  range.far_end);
                span(tc.n_kv[1], range.near_begin, range.near_end);
            }
        }
    }

    return res;
}

// as the device does it: a sum over all columns before
static std::vector<llama_self_extend_column> make_columns(const test_case & tc, const std::vector<llama_self_extend_range> & ranges) {
    const int32_t n_tiles = (tc.n_tps + tc.ncols1 - 1)/tc.ncols1;

    std::vector<llama_self_extend_column> res;

    int32_t first = 0;
    for (int32_t i = 0; i < tc.n_stream*n_tiles; ++i) {
        const int32_t t = i%n_tiles*tc.ncols1;

        auto column = llama_self_extend_column_of(&ranges[i/n_tiles*tc.n_tps + t], std::min(tc.ncols1, tc.n_tps - t), tc.n_cells);

        column.first = first;
        first += column.n[0] + column.n[1];
        res.push_back(column);
    }
    res.push_back({ { 0, 0 }, { 0, 0 }, first });

    return res;
}

// a score and a value for each pair, out of nothing but their numbers
static float hash(uint64_t x) {
    x = (x ^ (x >> 31))*0x7fb5d329728ea185ull;
    x = (x ^ (x >> 27))*0x81dadef4bc2dd44dull;
    return float((x ^ (x >> 33)) >> 40)/float(1 << 24);
}

static float score_of(int64_t token, int64_t head, int64_t part, int64_t cell) {
    return 12.0f*hash(((token*131 + head)*2 + part)*100003 + cell + 1) - 6.0f;
}

static float value_of(int64_t stream, int64_t head_kv, int64_t part, int64_t cell) {
    return 2.0f*hash(((stream*137 + head_kv)*2 + part)*100019 + cell + 7) - 1.0f;
}

static bool sees(const llama_self_extend_range & range, int32_t part, int32_t cell) {
    return part == 0 ? cell >= range.far_begin && cell < range.far_end : cell >= range.near_begin && cell < range.near_end;
}

static bool fail(const test_case & tc, const char * what) {
    fprintf(stderr, "%s: %d streams of %d tokens, %d KV heads of %d, %d + %d cells, tiles of %d x %d, blocks of %d, %d workers, ranges %d\n",
            what, tc.n_stream, tc.n_tps, tc.n_head_kv, tc.n_gqa, tc.n_kv[0], tc.n_kv[1], tc.ncols1, tc.ncols2, tc.n_cells, tc.n_workers_max, tc.kind);
    return false;
}

static bool run(const test_case & tc, std::mt19937 & rng) {
    const auto ranges  = make_ranges(tc, rng);
    const auto columns = make_columns(tc, ranges);

    const int32_t n_tiles_tokens = (tc.n_tps + tc.ncols1 - 1)/tc.ncols1;
    const int32_t n_tiles_gqa    = (tc.n_gqa + tc.ncols2 - 1)/tc.ncols2;
    const int32_t n_columns      = tc.n_stream*n_tiles_tokens;
    const int32_t n_head_tiles   = tc.n_head_kv*n_tiles_gqa;
    const int32_t n_head         = tc.n_head_kv*tc.n_gqa;
    const int32_t n_cells_all    = tc.n_kv[0] + tc.n_kv[1];

    const llama_self_extend_schedule schedule = { columns.data(), n_columns, n_head_tiles, tc.n_workers_max };

    std::vector<partial> partials(llama_self_extend_schedule::n_slots(n_head_tiles, n_columns, tc.n_workers_max));
    std::vector<int>     n_seen(size_t(tc.n_stream)*tc.n_tps*n_head*n_cells_all, 0);

    int64_t n_units_done = 0;
    int64_t n_longest    = 0;
    int64_t n_shortest   = INT64_MAX;

    for (int64_t worker = 0; worker < tc.n_workers_max && worker < schedule.n_workers(); ++worker) {
        const int64_t unit_begin = schedule.unit_begin(worker);
        const int64_t unit_end   = schedule.unit_begin(worker + 1);

        n_longest  = std::max(n_longest,  unit_end - unit_begin);
        n_shortest = std::min(n_shortest, unit_end - unit_begin);

        for (int64_t unit = unit_begin; unit < unit_end; ) {
            const auto piece = schedule.piece_at(unit, unit_end, worker);

            if (piece.begin >= piece.end || piece.slot < 0 || piece.slot >= int32_t(partials.size())) {
                return fail(tc, "a piece without blocks, or without a slot");
            }

            auto & out = partials[piece.slot];

            out.n_written++;
            out.meta .assign(tc.ncols1*tc.ncols2, { LLAMA_SELF_EXTEND_MAX_NONE, 0.0f });
            out.value.assign(tc.ncols1*tc.ncols2, 0.0f);

            const int32_t stream  = piece.column/n_tiles_tokens;
            const int32_t head_kv = piece.head_tile/n_tiles_gqa;

            for (int32_t i = 0; i < tc.ncols1*tc.ncols2; ++i) {
                const int32_t t = piece.column%n_tiles_tokens*tc.ncols1 + i/tc.ncols2;
                const int32_t c = piece.head_tile%n_tiles_gqa*tc.ncols2 + i%tc.ncols2;

                if (t >= tc.n_tps || c >= tc.n_gqa) {
                    continue;
                }

                const int64_t token = stream*tc.n_tps + t;
                const int64_t head  = head_kv*tc.n_gqa + c;

                for (int32_t cell = piece.begin*tc.n_cells; cell < std::min(piece.end*tc.n_cells, tc.n_kv[piece.part]); ++cell) {
                    if (!sees(ranges[token], piece.part, cell)) {
                        continue;
                    }

                    n_seen[(token*n_head + head)*n_cells_all + (piece.part ? tc.n_kv[0] : 0) + cell]++;

                    const float s   = score_of(token, head, piece.part, cell);
                    const float max = std::max(out.meta[i].x, s);
                    const float old = std::exp(out.meta[i].x - max);
                    const float cur = std::exp(s - max);

                    out.meta [i]  = { max, out.meta[i].y*old + cur };
                    out.value[i]  = out.value[i]*old + cur*value_of(stream, head_kv, piece.part, cell);
                }
            }

            unit         += piece.end - piece.begin;
            n_units_done += piece.end - piece.begin;
        }
    }

    if (n_units_done != schedule.n_units()) {
        return fail(tc, "not every block was computed once");
    }
    if (n_longest > n_shortest + 1 && n_units_done > 0) {
        return fail(tc, "one worker has more to do than another");
    }

    for (int64_t token = 0; token < int64_t(tc.n_stream)*tc.n_tps; ++token) {
        for (int64_t head = 0; head < n_head; ++head) {
            const int32_t stream  = token/tc.n_tps;
            const int32_t t       = token%tc.n_tps;
            const int32_t c       = head%tc.n_gqa;
            const int32_t head_kv = head/tc.n_gqa;
            const float   sink    = tc.sinks ? score_of(0, head, 0, 999983) : LLAMA_SELF_EXTEND_MAX_NONE;

            double max = tc.sinks ? sink : -INFINITY;
            for (int32_t part = 0; part < 2; ++part) {
                for (int32_t cell = 0; cell < tc.n_kv[part]; ++cell) {
                    const bool live = sees(ranges[token], part, cell);

                    if (n_seen[(token*n_head + head)*n_cells_all + (part ? tc.n_kv[0] : 0) + cell] != live) {
                        return fail(tc, "a cell that a row sees was not computed exactly once");
                    }
                    if (live) {
                        max = std::max(max, double(score_of(token, head, part, cell)));
                    }
                }
            }

            double sum      = tc.sinks ? std::exp(sink - max) : 0.0;
            double expected = 0.0;
            for (int32_t part = 0; part < 2; ++part) {
                for (int32_t cell = 0; cell < tc.n_kv[part]; ++cell) {
                    if (sees(ranges[token], part, cell)) {
                        const double weight = std::exp(double(score_of(token, head, part, cell)) - max);

                        sum      += weight;
                        expected += weight*value_of(stream, head_kv, part, cell);
                    }
                }
            }
            expected = sum > 0.0 ? expected/sum : 0.0;

            const int32_t column    = stream*n_tiles_tokens + t/tc.ncols1;
            const int32_t head_tile = head_kv*n_tiles_gqa + c/tc.ncols2;
            const int32_t i_row     = t%tc.ncols1*tc.ncols2 + c%tc.ncols2;

            const auto far  = schedule.share(head_tile, column, 0);
            const auto near = schedule.share(head_tile, column, 1);

            const auto at = [&](int32_t i) -> const partial & {
                return partials[i < far.n ? far.slot + i : near.slot + (i - far.n)];
            };

            for (int32_t i = 0; i < far.n + near.n; ++i) {
                if (at(i).n_written != 1) {
                    return fail(tc, "a partial result that is merged was not written exactly once");
                }
            }

            const float got = llama_self_extend_merge(far.n + near.n,
                    [&](int32_t i) { return at(i).meta [i_row]; },
                    [&](int32_t i) { return at(i).value[i_row]; }, sink);

            // float sums of some hundred terms below 1
            if (!(std::fabs(got - expected) < 2e-5)) {
                fprintf(stderr, "got %g, expected %g\n", got, expected);
                return fail(tc, "the merge is not one softmax");
            }
        }
    }

    for (const auto & cur : partials) {
        if (cur.n_written > 1) {
            return fail(tc, "a partial result was written twice");
        }
    }

    return true;
}

// what must not overflow: long contexts, large batches, many heads
static bool run_large() {
    const int32_t n_columns    = 64;
    const int32_t n_head_tiles = 128;

    std::vector<llama_self_extend_column> columns;
    for (int32_t i = 0, first = 0; i <= n_columns; ++i) {
        const int32_t n_far = 1 << 18; // 16M tokens in blocks of 64

        columns.push_back({ { 0, 3 }, { n_far, 20 }, first });
        first += n_far + 20;
    }

    const llama_self_extend_schedule schedule = { columns.data(), n_columns, n_head_tiles, 264 };

    int64_t n_units = 0;
    int32_t slot    = -1;
    for (int64_t worker = 0; worker < schedule.n_workers(); ++worker) {
        const int64_t unit_end = schedule.unit_begin(worker + 1);

        for (int64_t unit = schedule.unit_begin(worker); unit < unit_end; ) {
            const auto piece = schedule.piece_at(unit, unit_end, worker);

            if (piece.end <= piece.begin || piece.slot <= slot || schedule.worker_of(unit) != worker) {
                fprintf(stderr, "a long line is cut wrongly at unit %lld\n", (long long) unit);
                return false;
            }
            slot     = piece.slot;
            unit    += piece.end - piece.begin;
            n_units += piece.end - piece.begin;
        }
    }

    return n_units == schedule.n_units();
}

int main() {
    std::mt19937 rng(1);

    const auto pick = [&](std::initializer_list<int32_t> values) { return values.begin()[rng() % values.size()]; };

    int n_cases  = 0;
    int n_failed = 0;

    for (int i = 0; i < 3000; ++i) {
        test_case tc;

        tc.n_stream      = pick({ 1, 1, 2, 3 });
        tc.n_tps         = pick({ 1, 2, 3, 5, 8, 17, 33 });
        tc.n_head_kv     = pick({ 1, 2, 3 });
        tc.n_gqa         = pick({ 1, 2, 3, 4, 5, 7, 8, 12, 16 });
        tc.n_kv[0]       = pick({ 32, 256, 512 });
        tc.n_kv[1]       = pick({ 32, 256 });
        tc.ncols2        = pick({ 1, 2, 4, 8 });
        tc.ncols1        = pick({ 8, 16, 32, 64 })/tc.ncols2;
        tc.n_cells       = pick({ 16, 32, 64, 128 });
        tc.n_workers_max = pick({ 1, 2, 3, 7, 16, 100, 264, 2000 });
        tc.kind          = rng() % N_KINDS;
        tc.sinks         = rng() % 2;

        n_cases++;
        n_failed += !run(tc, rng);
    }

    n_cases++;
    n_failed += !run_large();

    printf("%d cases, %d failed\n", n_cases, n_failed);

    return n_failed > 0;
}
