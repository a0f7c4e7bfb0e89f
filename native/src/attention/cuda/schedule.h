#pragma once

#include "attention/llama-self-extend-attn.h"

#include <cfloat>
#include <cmath>
#include <cstdint>

//
// which thread block computes what, and how the pieces become one softmax: the same code on the host, where it is tested
//
// A tile is some query heads of a KV head for some tokens. The cells of both parts that a tile sees are cut into blocks, and the
// blocks of all tiles are laid end to end, far before near. Each worker gets a stretch of this line, all of the same length, and
// leaves one partial result for each part of each tile that it touches.
//
// A column is what tiles of the same tokens have in common: they see the same cells.
//

#if defined(__CUDACC__) || defined(__HIPCC__) || defined(__MUSACC__)
#define LLAMA_SELF_EXTEND_HD __host__ __device__
#else
#define LLAMA_SELF_EXTEND_HD
#endif

// the blocks that the tokens of a column see, far and near
struct llama_self_extend_column {
    int32_t begin[2];
    int32_t n    [2];
    int32_t first; // of the line of one head tile: the blocks of the columns before this
};

// of tokens that see cells within these ranges, in blocks of n_cells; first is left to be filled in
LLAMA_SELF_EXTEND_HD inline llama_self_extend_column llama_self_extend_column_of(
        const llama_self_extend_range * ranges, int32_t n_tokens, int32_t n_cells) {
    llama_self_extend_column res = {};

    for (int part = 0; part < 2; ++part) {
        int32_t begin = INT32_MAX;
        int32_t end   = 0;

        for (int32_t i = 0; i < n_tokens; ++i) {
            const int32_t cur_begin = part == 0 ? ranges[i].far_begin : ranges[i].near_begin;
            const int32_t cur_end   = part == 0 ? ranges[i].far_end   : ranges[i].near_end;

            if (cur_begin < cur_end) {
                begin = cur_begin < begin ? cur_begin : begin;
                end   = cur_end   > end   ? cur_end   : end;
            }
        }

        if (begin < end) {
            res.begin[part] = begin/n_cells;
            res.n    [part] = (end + n_cells - 1)/n_cells - res.begin[part];
        }
    }

    return res;
}

// blocks of one part of one tile
struct llama_self_extend_piece {
    int32_t head_tile;
    int32_t column;
    int32_t part;
    int32_t begin;
    int32_t end;
    int32_t slot; // of its partial result
};

// the workers that have a share of one part of one tile, and the slot of the first; those of the others follow
struct llama_self_extend_share {
    int32_t slot;
    int32_t n;
};

struct llama_self_extend_schedule {
    const llama_self_extend_column * columns; // [n_columns + 1], first of the last: all blocks of a head tile

    int32_t n_columns;
    int32_t n_head_tiles;
    int32_t n_workers_max;

    LLAMA_SELF_EXTEND_HD int64_t n_units_head() const {
        return columns[n_columns].first;
    }

    LLAMA_SELF_EXTEND_HD int64_t n_units() const {
        return n_units_head()*n_head_tiles;
    }

    // none without a unit, or there would be slots that nobody writes
    LLAMA_SELF_EXTEND_HD int64_t n_workers() const {
        return n_units() < n_workers_max ? n_units() : n_workers_max;
    }

    // the units of a worker end where those of the next begin
    LLAMA_SELF_EXTEND_HD int64_t unit_begin(int64_t worker) const {
        return worker*n_units()/n_workers();
    }

    LLAMA_SELF_EXTEND_HD int64_t worker_of(int64_t unit) const {
        return ((unit + 1)*n_workers() - 1)/n_units();
    }

    // From one piece of the line to the next the part, the tile or the worker is another, and none of them ever goes down:
    // their sum tells all pieces apart.
    LLAMA_SELF_EXTEND_HD int32_t slot(int32_t head_tile, int32_t column, int32_t part, int64_t worker) const {
        return 2*(head_tile*n_columns + column) + part + int32_t(worker);
    }

    LLAMA_SELF_EXTEND_HD static int64_t n_slots(int64_t n_head_tiles, int64_t n_columns, int64_t n_workers_max) {
        return 2*n_head_tiles*n_columns + n_workers_max;
    }

    // the piece of a worker that begins at a unit and ends before unit_end at the latest
    LLAMA_SELF_EXTEND_HD llama_self_extend_piece piece_at(int64_t unit, int64_t unit_end, int64_t worker) const {
        llama_self_extend_piece res;

        res.head_tile = unit/n_units_head();

        const int32_t u = unit - res.head_tile*n_units_head();

        // the last column that begins at u or before: empty ones begin where the next does
        int32_t lo = 0;
        int32_t hi = n_columns;
        while (hi - lo > 1) {
            const int32_t mid = (lo + hi)/2;
            if (columns[mid].first <= u) {
                lo = mid;
            } else {
                hi = mid;
            }
        }

        const llama_self_extend_column & column = columns[lo];

        const int32_t i     = u - column.first;
        const int32_t n_far = column.n[0];
        const int64_t n_max = unit_end - unit;

        res.column = lo;
        res.part   = i >= n_far;

        // no index that is not a constant: it would move the column to memory
        const int32_t j      = res.part ? i - n_far : i;
        const int32_t n_left = (res.part ? column.n[1] : n_far) - j;

        res.begin = (res.part ? column.begin[1] : column.begin[0]) + j;
        res.end   = res.begin + (n_left < n_max ? n_left : int32_t(n_max));
        res.slot  = slot(res.head_tile, lo, res.part, worker);

        return res;
    }

    LLAMA_SELF_EXTEND_HD llama_self_extend_share share(int32_t head_tile, int32_t column, int32_t part) const {
        const int32_t n = columns[column].n[part];
        if (n == 0) {
            return { 0, 0 };
        }

        const int64_t unit   = head_tile*n_units_head() + columns[column].first + (part ? columns[column].n[0] : 0);
        const int64_t worker = worker_of(unit);

        return { slot(head_tile, column, part, worker), int32_t(worker_of(unit + n - 1) - worker + 1) };
    }
};

// A partial result is a sum of values that is not divided yet, the maximum of the scores that it was made with, and the sum of
// the weights. One value of the whole, from n of them:
//   meta(i)  -> maximum (.x) and sum of the weights (.y)
//   value(i) -> the value
// What saw nothing has the lowest maximum, as ggml's kernels start with it; so has a row without a sink. With nothing but
// such ones the result is 0.
constexpr float LLAMA_SELF_EXTEND_MAX_NONE = -FLT_MAX/2.0f;

template <typename META, typename VALUE>
LLAMA_SELF_EXTEND_HD inline float llama_self_extend_merge(int32_t n, const META & meta, const VALUE & value, float sink) {
    float max = sink;
    for (int32_t i = 0; i < n; ++i) {
        max = fmaxf(max, meta(i).x);
    }

    float sum = expf(sink - max);
    float res = 0.0f;

    for (int32_t i = 0; i < n; ++i) {
        const auto cur = meta(i);

        if (cur.y != 0.0f) { // otherwise it saw nothing
            const float weight = expf(cur.x - max);

            sum += weight*cur.y;
            res += weight*value(i);
        }
    }

    return res/sum;
}
