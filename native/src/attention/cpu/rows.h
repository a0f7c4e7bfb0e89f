#pragma once

#include "attention/cpu/work.h"

//
// the rows of a tile over some cells, in the two forms of ops.h
//

namespace llama_self_extend_cpu {

// load the queries of a tile, and start its sums
// few:  row (head, token) of the tile at (head*n_tokens + token)
// many: row (token, head) of the tile at (token*n_gqa + head), in panels
void begin_few (attn_work & w, const attn_tile & tile);
void begin_many(attn_work & w, const attn_tile & tile);

// go on over cells of a part
void attend_few (attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells);
void attend_many(attn_work & w, const attn_tile & tile, int part, int64_t cell0, int64_t n_cells);

// some of many rows
struct panel {
    int64_t row0;
    int64_t n_rows; // of the tile
    int64_t n_pad;  // whole vectors
};

inline panel panel_at(const attn_work & w, const attn_tile & tile, int64_t i) {
    const int64_t row0   = i*w.ops.n_panel;
    const int64_t n_rows = std::min(w.ops.n_panel, tile.n_tokens*w.pr.n_gqa - row0);

    return { row0, n_rows, pad(n_rows, w.ops.n_vec) };
}

inline int64_t n_panels(const attn_work & w, const attn_tile & tile) {
    return div_up(tile.n_tokens*w.pr.n_gqa, w.ops.n_panel);
}

inline void scale(float * x, int64_t n, float a) {
    for (int64_t i = 0; i < n; ++i) {
        x[i] *= a;
    }
}

} // namespace llama_self_extend_cpu
