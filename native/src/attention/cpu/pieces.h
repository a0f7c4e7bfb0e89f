#pragma once

#include "attention/cpu/work.h"

//
// pieces: where tiles are few their cells are cut as well
//

namespace llama_self_extend_cpu {

// the cells of both parts that a tile sees, laid end to end
struct attn_cells {
    span    live[N_PARTS];
    int64_t n_piece;  // cells of a piece
    int64_t n_pieces;

    attn_cells(const attn_problem & pr, const llama_self_extend_attn_params & params, const attn_tile & tile);
};

// dst: the result [n_embd_v, n_head, n_tokens], then the partial results [n_partial, n_head, n_tokens, n_pieces]

// Compute a piece of a tile, or of some of its heads, into dst: the result if there is but one piece, else a partial one.
// Stores the new cells that lie in it, if there are any.
void compute_piece(ggml_tensor * dst, attn_work & w, const attn_tile & tile, const attn_cells & cells, int64_t piece);

// Put the partial results of a tile together.
void join_pieces(ggml_tensor * dst, const attn_problem & pr, const attn_tile & tile, const attn_cells & cells);

} // namespace llama_self_extend_cpu
