#include "cache/llama-kv-cache-self-extend.h"

#include "attention/llama-self-extend-attn.h"

#include "llama-arch.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cinttypes>
#include <iterator>

//
// construction
//

llama_kv_cache_self_extend::llama_kv_cache_self_extend(
                      const llama_model & model,
                    const llama_cparams & cparams,
         const llama_self_extend_config & config,
                    const turn_graphs & graphs,
                       llama_memory_ptr   mem_new) :
    model(model), config(config), graphs(graphs), mem(std::move(mem_new)),
    kv_iswa(dynamic_cast<llama_kv_cache_iswa *>(mem.get())),
    kv_far (kv_iswa ? kv_iswa->get_base() : dynamic_cast<llama_kv_cache *>(mem.get())),
    layer_ids(kv_far->get_layer_ids()),
    v_trans(!cparams.flash_attn),
    ropes(model.hparams.n_layer_all),
    ga_n_streams(kv_far->get_n_stream(), config.map.ga_n),
    ga_n_cells(kv_far->get_n_stream(), std::vector<uint32_t>(kv_far->get_size(), config.map.ga_n)) {
    if (layer_ids.empty()) {
        llama_self_extend_refuse("architecture '%s' is not supported: all of its layers have a window of their own", llm_arch_name(model.arch));
    }

    // a whole ubatch is stored before its first token is evaluated. sequences that share cells of the far part may each have
    // their own here
    const uint32_t n_seq_cells = cparams.kv_unified ? cparams.n_seq_max : 1;
    const uint32_t size_window = std::min(kv_far->get_size(), config.map.ga_w);
    const uint32_t size_padded = GGML_PAD(size_window*n_seq_cells + cparams.n_ubatch, 256);
    const uint32_t size_near   = n_seq_cells > 1 ? size_padded : std::min(kv_far->get_size(), size_padded);

    LLAMA_LOG_INFO("%s: ga_n = %u to %u, ga_w = %u, reach = %" PRId64 " tokens, far = %u cells, near = %u cells, %zu layers\n", __func__,
            config.map.ga_n, config.ga_n_max, config.map.ga_w, config.n_ctx_reach, kv_far->get_size(), size_near, layer_ids.size());

    const auto filter = [&](int32_t il) { return is_extended(il); };

    kv_near = std::make_unique<llama_kv_cache>(
            model, model.hparams, kv_far->type_k(), kv_far->type_v(),
            !cparams.flash_attn, cparams.offload_kqv, cparams.kv_unified, size_near, cparams.n_seq_max, 1,
            0, LLAMA_SWA_TYPE_NONE, nullptr, filter, nullptr, nullptr, "near_");

    ways.resize(model.hparams.n_layer_all, LLAMA_SELF_EXTEND_WAY_COMPOSED);

    for (uint32_t il : layer_ids) {
        ways[il] = llama_self_extend_find_way(*kv_far, *kv_near, model.hparams, cparams, config.attn, il);

        if (config.attn == LLAMA_SELF_EXTEND_ATTN_FUSED && ways[il] == LLAMA_SELF_EXTEND_WAY_COMPOSED) {
            llama_self_extend_refuse("the fused attention was asked for, but device '%s' does not have it for the cache of layer %u",
                    ggml_backend_dev_name(llama_self_extend_dev_of(*kv_far, il)), il);
        }
    }
}

//
// what is in force
//

llama_kv_cache * llama_kv_cache_self_extend::get_far() const {
    return kv_far;
}

llama_kv_cache * llama_kv_cache_self_extend::get_near() const {
    return kv_near.get();
}

bool llama_kv_cache_self_extend::is_extended(int32_t il) const {
    return std::find(layer_ids.begin(), layer_ids.end(), uint32_t(il)) != layer_ids.end();
}

llama_self_extend_way llama_kv_cache_self_extend::get_way(int32_t il) const {
    return ways[il];
}

const llama_self_extend_rope * llama_kv_cache_self_extend::get_rope(int32_t il) const {
    return ropes[il] ? &*ropes[il] : nullptr;
}

void llama_kv_cache_self_extend::set_rope(int32_t il, const ggml_tensor * k_cur) {
    llama_self_extend_rope rope;
    if (llama_self_extend_rope_find(k_cur, rope)) {
        ropes[il] = rope;
    }

    const auto is_none = [&](uint32_t i) { return ropes[i] && ropes[i]->none; };

    if (il == int32_t(layer_ids.back()) && std::all_of(layer_ids.begin(), layer_ids.end(), is_none)) {
        llama_self_extend_refuse("architecture '%s' is not supported: its layers without a window of their own do not use RoPE",
                llm_arch_name(model.arch));
    }
}

bool llama_kv_cache_self_extend::can_turn() const {
    return std::all_of(layer_ids.begin(), layer_ids.end(), [&](uint32_t il) { return get_rope(il); });
}

llama_seq_id llama_kv_cache_self_extend::n_seq() const {
    return kv_far->get_n_stream() > 1 ? kv_far->get_n_stream() : LLAMA_MAX_SEQ;
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_self_extend::memory_breakdown() const {
    auto mb = mem->memory_breakdown();
    for (const auto & [buft, size] : kv_near->memory_breakdown()) {
        mb[buft] += size;
    }
    return mb;
}

static uint64_t n_bytes(const llama_memory_i & mem) {
    uint64_t res = 0;
    for (const auto & [_, size] : mem.memory_breakdown()) {
        res += size;
    }
    return res;
}

llama_self_extend_info llama_kv_cache_self_extend::get_info() const {
    const auto n_fused = std::count_if(layer_ids.begin(), layer_ids.end(), [&](uint32_t il) {
        return ways[il] != LLAMA_SELF_EXTEND_WAY_COMPOSED;
    });

    return {
        /*.ga_n             =*/ config.map.ga_n,
        /*.ga_n_max         =*/ config.ga_n_max,
        /*.ga_w             =*/ config.map.ga_w,
        /*.n_ctx_train      =*/ config.n_ctx_train,
        /*.n_layer_fused    =*/ uint32_t(n_fused),
        /*.n_layer_composed =*/ uint32_t(layer_ids.size() - n_fused),
        /*.n_ctx_reach      =*/ uint64_t(config.n_ctx_reach),
        /*.n_bytes_far      =*/ n_bytes(*kv_far),
        /*.n_bytes_near     =*/ n_bytes(*kv_near),
        /*.map              =*/ config.map.type,
    };
}

//
// sequences
//

bool llama_kv_cache_self_extend::swa_has_window(llama_seq_id seq_id, llama_pos p1) const {
    if (!kv_iswa) {
        return true;
    }

    const auto & far = kv_far->get_cells(seq_id).seq_pos_get(seq_id);
    const auto & swa = kv_iswa->get_swa()->get_cells(seq_id).seq_pos_get(seq_id);

    auto it_far = std::make_reverse_iterator(far.lower_bound({ p1, 0 }));
    auto it_swa = std::make_reverse_iterator(swa.lower_bound({ p1, 0 }));

    const llama_pos next = it_far == far.rend() ? 0 : it_far->first + 1;

    for (; it_far != far.rend(); ++it_far, ++it_swa) {
        if (llama_hparams::is_masked_swa(model.hparams.n_swa, model.hparams.swa_type, it_far->first, next)) {
            break;
        }
        if (it_swa == swa.rend() || it_swa->first != it_far->first) {
            return false;
        }
    }

    return true;
}

bool llama_kv_cache_self_extend::swa_has_all() const {
    for (llama_seq_id s = 0; kv_iswa && s < n_seq(); ++s) {
        if (kv_iswa->get_swa()->get_cells(s).seq_pos_get(s).size() != kv_far->get_cells(s).seq_pos_get(s).size()) {
            return false;
        }
    }

    return true;
}

void llama_kv_cache_self_extend::clear(bool data) {
    const auto used = get_used();

    mem    ->clear(data);
    kv_near->clear(data);

    begin_anew(used);
}

bool llama_kv_cache_self_extend::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    // removing the tail of a sequence brings older keys into the window again
    for (llama_seq_id s = 0; s < n_seq(); ++s) {
        const llama_pos pos_max = seq_id == -1 || seq_id == s ? kv_far->seq_pos_max(s) : -1;

        if (p0 <= 0 || p0 > pos_max || (p1 >= 0 && p1 <= pos_max)) {
            continue;
        }

        if (!swa_has_window(s, p0) || (!can_turn() && !near_missing(s, p0).empty())) {
            return false;
        }

        need_check = true;
    }

    const auto used = get_used();

    bool res = true;

    res = res & mem    ->seq_rm(seq_id, p0, p1);
    res = res & kv_near->seq_rm(seq_id, p0, p1);

    begin_anew(used);

    return res;
}

void llama_kv_cache_self_extend::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    const uint32_t strm_src = kv_far->get_stream(seq_id_src);
    const uint32_t strm_dst = kv_far->get_stream(seq_id_dst);

    mem    ->seq_cp(seq_id_src, seq_id_dst, p0, p1);
    kv_near->seq_cp(seq_id_src, seq_id_dst, p0, p1);

    if (strm_src != strm_dst) {
        ga_n_streams[strm_dst] = ga_n_streams[strm_src];
        ga_n_cells  [strm_dst] = ga_n_cells  [strm_src];
    }

    need_check = true;
}

void llama_kv_cache_self_extend::seq_keep(llama_seq_id seq_id) {
    const auto used = get_used();

    mem    ->seq_keep(seq_id);
    kv_near->seq_keep(seq_id);

    begin_anew(used);
}

void llama_kv_cache_self_extend::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (!get_can_shift()) {
        LLAMA_LOG_ERROR("%s: the positions of this model's keys cannot be shifted: seq_id = %d, p0 = %d, p1 = %d, shift = %d is ignored\n",
                __func__, seq_id, p0, p1, shift);
        return;
    }

    const auto & cells   = kv_far->get_cells(seq_id);
    const auto & far     = cells.seq_pos_get(seq_id);
    const auto   it_last = p1 < 0 ? far.end() : far.lower_bound({ p1, 0 });

    if (shift == 0 || it_last == far.begin() || std::prev(it_last)->first < p0) {
        return; // nothing to do
    }

    auto         & ga_n = ga_n_streams[kv_far->get_stream(seq_id)];
    const uint32_t need = raised(ga_n, std::prev(it_last)->first + int64_t(shift));

    if (need == 0) {
        const llama_self_extend_map last = get_map_max(seq_id);

        LLAMA_LOG_ERROR("%s: position %d + %d is beyond the reach of ga_n = %u, ga_w = %u: %" PRId64 " tokens, the shift is ignored\n",
                __func__, std::prev(it_last)->first, shift, last.ga_n, last.ga_w, last.n_ctx_reach(config.n_ctx_train));
        return;
    }

    // as in llama.cpp, a cell that several sequences share moves for all of them. which cells are shared is not the same
    // in both parts, so the near part is made again for the others
    for (llama_seq_id s = 0; s < n_seq(); ++s) {
        const auto shared = [&](const far_key & key) { return cells.seq_has(key.second, s); };

        if (s != seq_id && std::any_of(far.lower_bound({ p0, 0 }), it_last, shared)) {
            kv_near->seq_rm(s, -1, -1);
        }
    }

    const auto used = get_used();

    need_check = true;
    need_turn  = need_turn || need != ga_n;

    ga_n = need;

    // removes what comes before position 0
    mem    ->seq_add(seq_id, p0, p1, shift);
    kv_near->seq_add(seq_id, p0, p1, shift);

    begin_anew(used);
}

void llama_kv_cache_self_extend::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    LLAMA_LOG_ERROR("%s: positions cannot be divided with SelfExtend: seq_id = %d, p0 = %d, p1 = %d, d = %d is ignored\n",
            __func__, seq_id, p0, p1, d);
}

llama_pos llama_kv_cache_self_extend::seq_pos_min(llama_seq_id seq_id) const {
    // what the near part has forgotten is not lost
    return mem->seq_pos_min(seq_id);
}

llama_pos llama_kv_cache_self_extend::seq_pos_max(llama_seq_id seq_id) const {
    return mem->seq_pos_max(seq_id);
}

bool llama_kv_cache_self_extend::get_can_shift() const {
    // a shift brings tokens together that were apart: nothing may have been forgotten
    if (!mem->get_can_shift() || !can_turn() || !swa_has_all()) {
        return false;
    }

    // llama.cpp shifts the layers with a window of their own, and scales their keys once more where RoPE has a magnitude
    return !kv_iswa || std::all_of(layer_ids.begin(), layer_ids.end(), [&](uint32_t il) { return get_rope(il)->magnitude == 1.0f; });
}
