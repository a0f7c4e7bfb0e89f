#include "attention/cpu/llama-self-extend-attn-cpu.h"

#include "attention/cpu/ops.h"
#include "attention/cpu/pieces.h"
#include "attention/cpu/problem.h"
#include "attention/cpu/work.h"

#include <algorithm>
#include <iterator>

//
// One node computes the attention of a layer. The running maximum and the running sum pass from the far part to the near
// part: this is what makes it one softmax.
//
// The work is cut into tiles: the query heads of a KV head for some tokens, or, if there are only few rows (decode), all
// heads. Where that makes too few, the cells of a tile are cut into pieces as well, and the thread that is the last to end a
// piece of a tile puts the pieces together. Threads take the next piece when they have done one, as tiles differ in how many
// cells they see and threads in how fast they are. What a row is summed up from, and in which order, does not depend on the
// number of threads: more threads get smaller tiles or fewer heads, never other pieces.
//
// If there are only few rows, whoever takes a piece first stores the new cells that lie in it. A store of its own would be
// one more node at which all threads have to meet, and one token's attention takes hardly longer than that.
//

using namespace llama_self_extend_cpu;

//
// the threads
//

static void compute_attn(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(ith);

    const attn_problem pr(dst->src);

    auto &       params = *(llama_self_extend_attn_params *) userdata;
    const auto & ops    = params.ops ? *params.ops : **llama_self_extend_ops_list();

    const int64_t n_pieces_max = pr.n_pieces_max();

    // smaller tiles if there are not enough for all threads
    int64_t n_tokens_tile = pr.n_tokens_tile_max();
    while (n_pieces_max == 1 && n_tokens_tile > 16 && pr.n_tiles(n_tokens_tile) < 4*nth) {
        n_tokens_tile = (n_tokens_tile + 1)/2;
    }

    const int64_t n_head_kv_tile = pr.few ? pr.n_head_kv : 1;
    const int64_t n_tiles_tokens = div_up(pr.n_tps, n_tokens_tile);

    llama_self_extend_attn_op op;
    GGML_ASSERT(llama_self_extend_attn_get_op(dst, op));

    attn_work w(pr, params, op, ops, n_tokens_tile*n_head_kv_tile*pr.n_gqa, pr.few ? N_CELLS_FEW : N_CELLS_MANY);

    for (;;) {
        const int64_t i = params.n_taken.fetch_add(1, std::memory_order_relaxed);

        const int64_t i_tile = i/n_pieces_max;
        const int64_t i_unit = i%n_pieces_max;

        if (i_tile >= pr.n_tiles(n_tokens_tile)) {
            break;
        }

        attn_tile tile;

        tile.n_head_kv = n_head_kv_tile;
        tile.head_kv   = i_tile%(pr.n_head_kv/n_head_kv_tile);
        tile.stream    = i_tile/(pr.n_head_kv/n_head_kv_tile)/n_tiles_tokens;
        tile.token0    = i_tile/(pr.n_head_kv/n_head_kv_tile)%n_tiles_tokens*n_tokens_tile;
        tile.n_tokens  = std::min(n_tokens_tile, pr.n_tps - tile.token0);
        tile.token0   += tile.stream*pr.n_tps;

        const attn_cells cells(pr, params, tile);

        // heads apart if there are not enough pieces for all threads
        const int64_t n_wanted = div_up(nth, cells.n_pieces*pr.n_tiles(n_tokens_tile));
        const int64_t n_heads  = div_up(tile.n_head_kv, std::clamp<int64_t>(n_wanted, 1, n_pieces_max/cells.n_pieces));
        const int64_t n_units  = div_up(tile.n_head_kv, n_heads)*cells.n_pieces;

        if (i_unit >= n_units) {
            continue;
        }

        attn_tile unit = tile;

        unit.head_kv  += i_unit/cells.n_pieces*n_heads;
        unit.n_head_kv = std::min(n_heads, tile.head_kv + tile.n_head_kv - unit.head_kv);

        compute_piece(dst, w, unit, cells, i_unit%cells.n_pieces);

        if (cells.n_pieces > 1) {
            auto & n_arrived = params.n_arrived[i_tile];

            // acquire what the others have stored, release what this thread has
            if (n_arrived.fetch_add(1, std::memory_order_acq_rel) == n_units - 1) {
                n_arrived.store(0, std::memory_order_relaxed);
                join_pieces(dst, pr, tile, cells);
            }
        }
    }

    // the threads meet before the next node is computed
    if (params.n_done.fetch_add(1, std::memory_order_relaxed) == nth - 1) {
        params.n_taken.store(0, std::memory_order_relaxed);
        params.n_done .store(0, std::memory_order_relaxed);
    }
}

//
// building it
//

const char * llama_self_extend_attn_isa() {
    return llama_self_extend_ops_list()[0]->name;
}

bool llama_self_extend_attn_can_store(const ggml_tensor * q, const ggml_tensor * k) {
    return attn_problem::is_few(q->ne[1], k->ne[1], q->ne[2]/k->ne[3]);
}

ggml_tensor * llama_self_extend_attn_build(
        ggml_context                  * ctx,
        ggml_tensor * const             src[LLAMA_SELF_EXTEND_N_SRC],
        float                           scale,
        float                           logit_softcap,
        llama_self_extend_attn_params * params) {
    const attn_problem pr(src);

    for (int part = 0; part < N_PARTS; ++part) {
        const ggml_tensor * q = pr.q[part];
        const ggml_tensor * k = pr.k[part];
        const ggml_tensor * v = pr.v[part];

        GGML_ASSERT(q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && ggml_are_same_shape(q, pr.q[FAR]));
        GGML_ASSERT(k->nb[0] == ggml_type_size(k->type) && k->ne[0] == pr.n_embd_k && k->ne[1] == pr.n_head_kv && k->ne[3] == pr.n_stream);
        GGML_ASSERT(v->nb[0] == ggml_type_size(v->type) && v->ne[1] == pr.n_head_kv && v->ne[3] == pr.n_stream);
        GGML_ASSERT((v->nb[1] > v->nb[2]) == pr.v_trans && v->ne[pr.v_trans ? 2 : 0] == pr.n_embd_v && v->ne[pr.v_trans ? 0 : 2] == k->ne[2]);
        GGML_ASSERT(!pr.v_trans || !ggml_is_quantized(v->type));
    }
    GGML_ASSERT(pr.n_head % pr.n_head_kv == 0 && pr.n_tokens % pr.n_stream == 0);
    GGML_ASSERT(pr.mask->type == GGML_TYPE_F16 && pr.mask->ne[0] == pr.k[FAR]->ne[2] + pr.k[NEAR]->ne[2] && pr.mask->ne[1] == pr.n_tps && pr.mask->ne[3] == pr.n_stream);
    GGML_ASSERT(!pr.sinks || (pr.sinks->type == GGML_TYPE_F32 && pr.sinks->ne[0] == pr.n_head));

    if (pr.k_new) {
        GGML_ASSERT(pr.few && pr.k_new->type == GGML_TYPE_F32 && pr.v_new->type == GGML_TYPE_F32);
        GGML_ASSERT(pr.k_new->nb[0] == sizeof(float) && pr.k_new->ne[0] == pr.n_embd_k && pr.k_new->ne[1] == pr.n_head_kv && pr.k_new->ne[2] == pr.n_tokens);
        GGML_ASSERT(pr.v_new->nb[0] == sizeof(float) && pr.v_new->ne[0] == pr.n_embd_v && pr.v_new->ne[1] == pr.n_head_kv && pr.v_new->ne[2] == pr.n_tokens);
    }

    if (pr.n_pieces_max() > 1) {
        params->n_arrived = std::make_unique<std::atomic<int32_t>[]>(pr.n_tiles(pr.n_tokens_tile_max()));
    }

    ggml_tensor * node = llama_self_extend_attn_new_node(ctx, src, scale, logit_softcap, pr.n_embd_v,
            pr.n_partial()*pr.n_head*pr.n_tokens_pieces(), compute_attn, params);

    return ggml_view_3d(ctx, node, pr.n_embd_v, pr.n_head, pr.n_tokens,
            pr.n_embd_v*sizeof(float), pr.n_embd_v*pr.n_head*sizeof(float), 0);
}
