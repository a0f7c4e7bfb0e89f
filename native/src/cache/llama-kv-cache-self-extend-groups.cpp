#include "cache/llama-kv-cache-self-extend.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>
#include <cinttypes>
#include <utility>

//
// the group size of a sequence: set, raised where it no longer reaches, and the far keys turned to it
//

bool llama_kv_cache_self_extend::has_seq(llama_seq_id seq_id) const {
    return seq_id >= 0 && uint32_t(seq_id) < kv_far->get_n_seq_max();
}

uint32_t llama_kv_cache_self_extend::get_ga_w() const {
    return config.map.ga_w;
}

llama_self_extend_map llama_kv_cache_self_extend::map_of(uint32_t ga_n) const {
    return { ga_n, config.map.ga_w, config.map.type };
}

llama_self_extend_map llama_kv_cache_self_extend::get_map(llama_seq_id seq_id) const {
    return map_of(ga_n_streams[kv_far->get_stream(seq_id)]);
}

llama_self_extend_map llama_kv_cache_self_extend::get_map_max(llama_seq_id seq_id) const {
    return map_of(std::max(get_map(seq_id).ga_n, config.ga_n_max));
}

llama_self_extend_map llama_kv_cache_self_extend::get_map_cell(uint32_t strm, uint32_t i) const {
    return map_of(ga_n_cells[strm][i]);
}

const llama_self_extend_map & llama_kv_cache_self_extend::get_map() const {
    return config.map;
}

llama_self_extend_freqs llama_kv_cache_self_extend::get_freqs() const {
    if (!config.map.has_freqs()) {
        return { config.map, 1, config.n_ctx_train };
    }

    // powers of two, or all the same
    uint32_t den = 1;
    for (uint32_t strm = 0; strm < kv_far->get_n_stream(); ++strm) {
        den = std::max(den, map_of(ga_n_streams[strm]).pos_den());

        for (uint32_t i = 0; i < ga_n_cells[strm].size(); ++i) {
            den = std::max(den, is_lost(strm, i) ? 1 : get_map_cell(strm, i).pos_den());
        }
    }

    return { config.map, den, config.n_ctx_train };
}

bool llama_kv_cache_self_extend::is_lost(uint32_t strm, uint32_t i) const {
    return ga_n_cells[strm][i] == GA_N_LOST;
}

bool llama_kv_cache_self_extend::has_lost(llama_seq_id seq_id) const {
    const uint32_t strm = kv_far->get_stream(seq_id);
    const auto   & keys = kv_far->get_cells(seq_id).seq_pos_get(seq_id);

    return std::any_of(keys.begin(), keys.end(), [&](const far_key & key) { return is_lost(strm, key.second); });
}

//
// which group
//

void llama_kv_cache_self_extend::set_group(llama_seq_id seq_id, uint32_t ga_n) {
    if (!has_seq(seq_id)) {
        llama_self_extend_refuse("there is no sequence %d, n_seq_max is %u", seq_id, kv_far->get_n_seq_max());
    }
    if (const char * fault = map_of(ga_n).find_fault()) {
        llama_self_extend_refuse("ga_n is %u, it must be %s", ga_n, fault);
    }
    if (!config.map.follows() && ga_n != config.map.ga_n) {
        llama_self_extend_refuse("ga_n is %u, but with this map it stays as the context was created: %u", ga_n, config.map.ga_n);
    }

    const uint32_t strm = kv_far->get_stream(seq_id);

    const int64_t n_tokens = int64_t(stream_pos_max(strm)) + 1;
    const int64_t n_reach  = map_of(ga_n).n_ctx_reach(config.n_ctx_train);

    if (n_tokens > n_reach) {
        llama_self_extend_refuse("ga_n = %u and ga_w = %u reach %" PRId64 " tokens, sequence %d has %" PRId64,
                ga_n, config.map.ga_w, n_reach, seq_id, n_tokens);
    }
    if (n_tokens > 0 && ga_n != ga_n_streams[strm] && !can_turn()) {
        llama_self_extend_refuse("the keys of this model cannot be turned to another group");
    }

    need_turn = need_turn || ga_n != ga_n_streams[strm];

    ga_n_streams[strm] = ga_n;
}

bool llama_kv_cache_self_extend::follow(llama_seq_id seq_id, int64_t n_kept, int64_t n_tokens) {
    if (!config.policy || !has_seq(seq_id)) {
        return true;
    }

    const uint32_t strm   = kv_far->get_stream(seq_id);
    const uint32_t ga_n   = ga_n_streams[strm];
    const bool     shared = stream_pos_max(strm) >= n_kept; // with a longer sequence

    const uint32_t chosen = config.policy->resume(ga_n, n_kept, n_tokens);
    const uint32_t wanted = shared ? std::max(ga_n, chosen) : chosen;

    if (wanted == ga_n || wanted == 0) {
        return true;
    }
    if (n_kept > 0 && !can_turn()) {
        return false;
    }
    set_group(seq_id, wanted);

    return true;
}

llama_pos llama_kv_cache_self_extend::stream_pos_max(uint32_t strm) const {
    llama_pos res = -1;

    for (llama_seq_id s = 0; s < n_seq(); ++s) {
        res = kv_far->get_stream(s) == strm ? std::max(res, kv_far->seq_pos_max(s)) : res;
    }

    return res;
}

std::vector<bool> llama_kv_cache_self_extend::get_used() const {
    std::vector<bool> res;

    for (uint32_t strm = 0; strm < kv_far->get_n_stream(); ++strm) {
        res.push_back(kv_far->get_cells(strm).get_used() > 0);
    }

    return res;
}

void llama_kv_cache_self_extend::begin_anew(const std::vector<bool> & was_used) {
    const auto is_used = get_used();

    for (size_t strm = 0; strm < is_used.size(); ++strm) {
        if (was_used[strm] && !is_used[strm]) {
            ga_n_streams[strm] = config.map.ga_n;
        }
    }
}

uint32_t llama_kv_cache_self_extend::raised(uint32_t ga_n, int64_t pos) const {
    return llama_self_extend_map_raised(map_of(ga_n), config.n_ctx_train, std::max(ga_n, config.ga_n_max), pos + 1);
}

bool llama_kv_cache_self_extend::is_whole() const {
    if (!owner) {
        return false;
    }

    const auto & cparams = owner->get_cparams();

    return !cparams.causal_attn || (cparams.embeddings && cparams.pooling_type != LLAMA_POOLING_TYPE_NONE);
}

uint32_t llama_kv_cache_self_extend::raise(std::vector<uint32_t> & streams, const llama_ubatch & ubatch) const {
    const bool whole = is_whole();

    // as they came, or as many tokens of each sequence
    const uint32_t n_seqs = ubatch.equal_seqs() ? ubatch.n_seqs : 1;
    const uint32_t n_each = ubatch.n_tokens/n_seqs;

    for (uint32_t j = 0; j < n_each; ++j) {
        for (uint32_t s = 0; s < n_seqs; ++s) {
            const uint32_t i    = s*n_each + j;
            uint32_t     & ga_n = streams[kv_far->get_stream(ubatch.seq_id[i][0])];
            const uint32_t need = raised(ga_n, ubatch.pos[i]);

            if (need != ga_n && j > 0 && !whole) {
                return j*n_seqs;
            }
            ga_n = need;
        }
    }

    return ubatch.n_tokens;
}

//
// what is cached
//

void llama_kv_cache_self_extend::set_group_of_cells(llama_seq_id seq_id, uint32_t ga_n) {
    auto & cells = ga_n_cells[kv_far->get_stream(seq_id)];

    for (const auto & [_, i] : kv_far->get_cells(seq_id).seq_pos_get(seq_id)) {
        cells[i] = ga_n;
    }
}

uint32_t llama_kv_cache_self_extend::get_n_raised() const {
    return n_raised;
}

bool llama_kv_cache_self_extend::apply_raise(const llama_ubatch & ubatch) {
    const auto before = ga_n_streams;

    raise(ga_n_streams, ubatch);

    if (ga_n_streams == before) {
        return true;
    }

    need_turn = true;
    n_raised++;

    return owner && turn_far(owner);
}

void llama_kv_cache_self_extend::apply_groups(const llama_ubatch & ubatch) {
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const llama_seq_id s    = ubatch.seq_id[i][0];
        const uint32_t     strm = kv_far->get_stream(s);
        const auto       & keys = kv_far->get_cells(s).seq_pos_get(s);

        for (auto it = keys.lower_bound({ ubatch.pos[i], 0 }); it != keys.end() && it->first == ubatch.pos[i]; ++it) {
            ga_n_cells[strm][it->second] = ga_n_streams[strm];
        }
    }
}

bool llama_kv_cache_self_extend::turn_far(llama_context * lctx) {
    bool res = true;

    for (uint32_t strm = 0; strm < kv_far->get_n_stream() && res; ++strm) {
        res = turn_far(lctx, strm);
    }

    need_turn  = !res;
    need_check = need_check || !res;

    if (!res) {
        LLAMA_LOG_ERROR("%s: failed to turn cached keys to another group\n", __func__);
    }

    return res;
}

bool llama_kv_cache_self_extend::turn_far(llama_context * lctx, uint32_t strm) {
    const auto & cells_far = kv_far->get_cells(strm);
    auto       & ga_n      = ga_n_cells[strm];

    const llama_self_extend_map to = map_of(ga_n_streams[strm]);

    const uint32_t den = get_freqs().get_den();

    std::vector<uint32_t> cells;
    std::vector<int32_t>  deltas;

    for (uint32_t i = 0; i < cells_far.size(); ++i) {
        if (cells_far.is_empty(i) || ga_n[i] == to.ga_n || is_lost(strm, i)) {
            continue;
        }

        const llama_pos pos   = cells_far.pos_get(i);
        const int64_t   delta = to.pos_k(pos, den) - get_map_cell(strm, i).pos_k(pos, den);

        if (delta == 0) {
            ga_n[i] = to.ga_n;
        } else {
            cells .push_back(i);
            deltas.push_back(delta);
        }
    }

    const size_t n_max = llama_n_ubatch(lctx);

    for (size_t i0 = 0; i0 < cells.size(); i0 += n_max) {
        const size_t i1 = std::min(cells.size(), i0 + n_max);

        std::vector<int32_t> rows;
        for (size_t i = i0; i < i1; ++i) {
            rows.push_back(strm*cells_far.size() + cells[i]);
        }

        const bool ok = graphs.turn(*this, lctx, rows, { deltas.begin() + i0, deltas.begin() + i1 });

        for (size_t i = i0; i < i1; ++i) {
            ga_n[cells[i]] = ok ? to.ga_n : GA_N_LOST;
        }
        if (!ok) {
            return false;
        }
    }

    return true;
}
