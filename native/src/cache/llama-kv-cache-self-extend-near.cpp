#include "cache/llama-kv-cache-self-extend.h"

#include "llama-batch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <tuple>

//
// the near part: what it lacks of the windows, which cells new keys get, and how it comes by what it has forgotten
//

std::vector<llama_kv_cache_self_extend::far_key> llama_kv_cache_self_extend::near_missing(llama_seq_id seq_id, llama_pos p1) const {
    const auto & far  = kv_far ->get_cells(seq_id).seq_pos_get(seq_id);
    const auto & near = kv_near->get_cells(seq_id).seq_pos_get(seq_id);

    std::vector<far_key> res;

    const auto far_end = far.lower_bound({ p1, 0 });
    if (far_end == far.begin()) {
        return res;
    }

    // the first position in the window of the next token
    const llama_pos p0 = std::clamp<llama_pos>(std::prev(far_end)->first - llama_pos(config.map.ga_w) + 2, 0, p1);

    auto it_near = near.lower_bound({ p0, 0 });

    for (auto it_far = far.lower_bound({ p0, 0 }); it_far != far_end; ++it_far) {
        if (it_near != near.end() && it_near->first == it_far->first) {
            ++it_near;
        } else {
            res.push_back(*it_far);
        }
    }

    return res;
}

void llama_kv_cache_self_extend::near_make_room(llama_seq_id seq_id, uint32_t n) {
    const auto & cells = kv_near->get_cells(seq_id);

    // the first position in the window of the next token
    const llama_pos p_keep = kv_far->seq_pos_max(seq_id) - llama_pos(config.map.ga_w) + 2;

    // a cell that another sequence uses as well is not free yet, hence the loop
    while (cells.size() - cells.get_used() < n) {
        const uint32_t  n_free = cells.size() - cells.get_used();
        const llama_pos p0     = cells.seq_pos_min(seq_id);
        const llama_pos p1     = std::min<llama_pos>(p0 + (n - n_free), p_keep);

        if (p0 < 0 || p1 <= p0) {
            break;
        }

        kv_near->seq_rm(seq_id, p0, p1);
    }
}

llama_kv_cache::slot_info llama_kv_cache_self_extend::find_near(const llama_ubatch & ubatch) {
    if (kv_near->get_n_stream() == 1) {
        // all sequences share the cells
        for (llama_seq_id s = 0; s < n_seq(); ++s) {
            near_make_room(s, ubatch.n_tokens);
        }
    } else {
        for (uint32_t i = 0; i < ubatch.n_seqs_unq; ++i) {
            near_make_room(ubatch.seq_id_unq[i], ubatch.n_tokens/ubatch.n_seqs_unq);
        }
    }

    return kv_near->find_slot(ubatch, false);
}

bool llama_kv_cache_self_extend::restore_near(llama_context * lctx) {
    const size_t n_max = llama_n_ubatch(lctx);

    for (llama_seq_id s = 0; s < n_seq(); ++s) {
        if (has_lost(s)) {
            continue; // batches of it are refused
        }

        const auto missing = near_missing(s, std::numeric_limits<llama_pos>::max());

        for (size_t i0 = 0; i0 < missing.size(); i0 += n_max) {
            const size_t n = std::min(n_max, missing.size() - i0);

            llama_batch_allocr balloc(model.hparams.n_pos_per_embd());
            llama_ubatch ubatch = balloc.ubatch_reserve(n, 1);

            std::vector<uint32_t> cells_far(n);

            ubatch.seq_id_unq[0] = s;
            for (size_t i = 0; i < n; ++i) {
                std::tie(ubatch.pos[i], cells_far[i]) = missing[i0 + i];
                ubatch.n_seq_id[i] = 1;
                ubatch.seq_id  [i] = &s;
            }

            const auto sinfo = find_near(ubatch);

            if (sinfo.empty() || !graphs.restore(*this, lctx, ubatch, sinfo, cells_far)) {
                LLAMA_LOG_ERROR("%s: failed to restore the window of sequence %d\n", __func__, s);
                return false;
            }

            kv_near->apply_ubatch(sinfo, ubatch);
        }
    }

    return true;
}
