#include "cache/llama-kv-cache-self-extend.h"

#include "state/llama-self-extend-state.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

// the largest number of cells of a stream that a state of a sequence, -1 for all, holds
static uint32_t n_cells_of(const llama_kv_cache & kv, llama_seq_id seq_id, uint32_t n_swa, llama_swa_type swa_type) {
    uint32_t res = 0;

    for (uint32_t s = 0; s < kv.get_n_stream(); ++s) {
        const auto & cells = kv.get_cells(s);

        uint32_t n = 0;
        for (uint32_t i = 0; i < cells.size(); ++i) {
            n += !cells.is_empty(i) && (seq_id == -1 || (cells.seq_has(i, seq_id) &&
                    !llama_hparams::is_masked_swa(n_swa, swa_type, cells.pos_get(i), cells.seq_pos_max(seq_id))));
        }
        res = std::max(res, n);
    }

    return res;
}

// how many cells there are for a state of a sequence, -1 for all, when what it takes the place of is gone
static uint32_t n_room_for(const llama_kv_cache & kv, llama_seq_id seq_id) {
    if (seq_id == -1) {
        return kv.get_size();
    }

    const auto & cells = kv.get_cells(seq_id);
    const auto & keys  = cells.seq_pos_get(seq_id);

    const auto own = std::count_if(keys.begin(), keys.end(), [&](const auto & key) { return cells.seq_count(key.second) == 1; });

    return cells.size() - cells.get_used() + own;
}

std::vector<llama_kv_cache *> llama_kv_cache_self_extend::get_parts(llama_state_seq_flags flags) const {
    if (kv_iswa && (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)) {
        return { nullptr, kv_iswa->get_swa(), nullptr }; // what going back cannot bring back
    }

    return { kv_far, kv_iswa ? kv_iswa->get_swa() : nullptr, kv_near.get() };
}

llama_self_extend_state llama_kv_cache_self_extend::get_state(llama_seq_id seq_id) const {
    llama_self_extend_hash hash;

    if (fingerprint == 0) {
        fingerprint = llama_self_extend_fingerprint(model);
    }

    hash.update(&fingerprint, sizeof(fingerprint));
    for (uint32_t il : layer_ids) {
        if (const auto * rope = get_rope(il)) {
            hash.update(rope->op_params,  sizeof(rope->op_params));
            hash.update(&rope->magnitude, sizeof(rope->magnitude));
            hash.update(std::string(rope->factors ? rope->factors->name : ""));
        }
    }

    llama_self_extend_state res;

    res.ga_n     = config.map.ga_n;
    res.ga_n_max = config.ga_n_max;
    res.ga_w     = config.map.ga_w;
    res.map      = config.map.type;
    res.model    = hash.value();
    res.type_k   = kv_far->type_k();
    res.type_v   = kv_far->type_v();
    res.v_trans  = v_trans;
    res.n_stream = kv_far->get_n_stream();
    res.n_seq    = 0;

    for (llama_seq_id s = 0; s < n_seq() && seq_id == -1; ++s) {
        res.n_seq = kv_far->seq_pos_max(s) < 0 ? res.n_seq : s + 1;
    }

    const auto parts = get_parts(0);
    for (size_t i = 0; i < parts.size(); ++i) {
        const bool is_swa = kv_iswa && parts[i] == kv_iswa->get_swa();

        res.n_cells[i] = parts[i] ?
            n_cells_of(*parts[i], seq_id, model.hparams.n_swa, is_swa ? model.hparams.swa_type : LLAMA_SWA_TYPE_NONE) : 0;
    }

    return res;
}

void llama_kv_cache_self_extend::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    for (llama_seq_id s = 0; s < n_seq(); ++s) {
        if (need_turn || ((seq_id == -1 || seq_id == s) && has_lost(s))) {
            llama_self_extend_refuse("keys were lost when they were turned, or still have to be");
        }
    }

    auto state = get_state(seq_id);
    auto parts = get_parts(flags);

    const bool on_device = flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;

    // what is kept on the device has to be taken back whole, and the near part may have less room by then
    if (on_device && can_turn()) {
        parts[PART_NEAR] = nullptr;
    }

    for (size_t i = 0; i < parts.size(); ++i) {
        state.has_part[i] = parts[i] != nullptr;

        llama_self_extend_io_count count;
        if (parts[i] && !on_device) {
            parts[i]->state_write(count, seq_id, flags);
        }
        state.n_bytes[i] = count.n_bytes();
    }
    const auto groups = get_groups(seq_id);

    state.n_groups = groups.size();
    state.hash     = state.compute_hash(groups);

    io.write(&state, sizeof(state));
    io.write(groups.data(), groups.size()*sizeof(groups[0]));

    llama_self_extend_io_hash hashed(io);

    for (auto * part : parts) {
        if (part) {
            part->state_write(on_device ? io : hashed, seq_id, flags);
        }
    }

    if (!on_device) {
        const uint64_t hash = hashed.value();
        io.write(&hash, sizeof(hash));
    }
}

std::vector<uint32_t> llama_kv_cache_self_extend::get_groups(llama_seq_id seq_id) const {
    return seq_id == -1 ? ga_n_streams : std::vector<uint32_t> { get_map(seq_id).ga_n };
}

void llama_kv_cache_self_extend::set_groups(const std::vector<uint32_t> & groups, llama_seq_id seq_id) {
    for (size_t i = 0; i < groups.size(); ++i) {
        const llama_seq_id s    = seq_id == -1 ? i : seq_id; // the first of a stream, or the only one
        const uint32_t     strm = kv_far->get_stream(s);

        if (seq_id == -1) {
            std::fill(ga_n_cells[strm].begin(), ga_n_cells[strm].end(), groups[i]);
        } else {
            set_group_of_cells(s, groups[i]);
        }

        ga_n_streams[strm] = seq_id != -1 && has_others(s) ? std::max(ga_n_streams[strm], groups[i]) : groups[i];
    }

    need_turn = true;
}

bool llama_kv_cache_self_extend::has_others(llama_seq_id seq_id) const {
    const auto & cells = kv_far->get_cells(seq_id);

    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (!cells.is_empty(i) && !(cells.seq_has(i, seq_id) && cells.seq_count(i) == 1)) {
            return true;
        }
    }

    return false;
}

void llama_kv_cache_self_extend::check_groups(
        const llama_self_extend_state & state, const std::vector<uint32_t> & groups, llama_seq_id seq_id) const {
    if (groups.size() != (seq_id == -1 ? ga_n_streams.size() : 1) || std::count(groups.begin(), groups.end(), 0)) {
        llama_self_extend_refuse("the state is damaged: it has other groups than sequences");
    }

    if (state.map != uint32_t(config.map.type)) {
        llama_self_extend_refuse("the state was saved with another map of positions: %u, this context has %u",
                state.map, uint32_t(config.map.type));
    }

    // a context that was opened with one group size does not change it unasked
    const bool is_same  = state.ga_n == config.map.ga_n && state.ga_n_max == config.ga_n_max;
    const bool is_fixed = config.ga_n_max == config.map.ga_n && !is_same;

    for (uint32_t ga_n : groups) {
        if ((is_fixed && ga_n != config.map.ga_n) || state.ga_w != config.map.ga_w) {
            llama_self_extend_refuse("the state was saved with ga_n = %u and ga_w = %u, this context has ga_n = %u and ga_w = %u",
                    ga_n, state.ga_w, config.map.ga_n, config.map.ga_w);
        }
    }
    if (seq_id != -1 && groups[0] != get_map(seq_id).ga_n && !can_turn() && has_others(seq_id)) {
        llama_self_extend_refuse("the state was saved with ga_n = %u, other sequences in the same buffer have ga_n = %u, "
                "and the keys of this model cannot be turned to another group", groups[0], get_map(seq_id).ga_n);
    }
}

// the group sizes that follow a header. throws a sentence if it is not one of a state
static std::vector<uint32_t> read_groups(llama_io_read_i & io, const llama_self_extend_state & state) {
    const llama_self_extend_state own {};

    if (state.magic != own.magic) {
        llama_self_extend_refuse("the state was not saved with SelfExtend");
    }
    if (state.version != own.version) {
        llama_self_extend_refuse("the state has version %u of the format, this library reads version %u", state.version, own.version);
    }

    std::vector<uint32_t> res(std::min<uint32_t>(state.n_groups, LLAMA_MAX_SEQ));
    llama_self_extend_state_read(io, res.data(), res.size()*sizeof(res[0]));

    return res;
}

// what was saved has to be what this cache can hold. throws a sentence that says what is not
static void check_state(
        const llama_self_extend_state & state, const std::vector<uint32_t> & groups, const llama_self_extend_state & own) {
    if (state.hash != state.compute_hash(groups)) {
        llama_self_extend_refuse("the state is damaged: its header is not the one that was saved");
    }
    if (state.model != own.model) {
        llama_self_extend_refuse("the state was saved with another model, or with other RoPE settings");
    }
    if (state.type_k != own.type_k || state.type_v != own.type_v || state.v_trans != own.v_trans) {
        llama_self_extend_refuse("the state was saved with a %s/%s cache%s, this context has a %s/%s cache%s",
                ggml_type_name(ggml_type(state.type_k)), ggml_type_name(ggml_type(state.type_v)), state.v_trans ? " without flash attention" : "",
                ggml_type_name(ggml_type(own.type_k)),   ggml_type_name(ggml_type(own.type_v)),   own.v_trans   ? " without flash attention" : "");
    }
    if (state.n_stream != own.n_stream) {
        llama_self_extend_refuse("the state was saved with %u streams of sequences, this context has %u (n_seq_max, kv_unified)",
                state.n_stream, own.n_stream);
    }
}

void llama_kv_cache_self_extend::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    llama_self_extend_state state;

    llama_self_extend_state_read(io, &state, sizeof(state));

    const auto groups = read_groups(io, state);

    check_state(state, groups, get_state(seq_id));

    auto parts = get_parts(flags);

    if (parts[PART_FAR]) {
        check_groups(state, groups, seq_id);
    }

    const bool on_device = flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;

    for (size_t i : { PART_FAR, PART_SWA }) {
        if (state.has_part[i] != (parts[i] != nullptr)) {
            llama_self_extend_refuse("the state was saved with other flags: %s the layers without a window of their own",
                    state.has_part[PART_FAR] ? "it holds" : "it does not hold");
        }
    }
    if (state.n_seq > kv_far->get_n_seq_max()) {
        llama_self_extend_refuse("the state has sequences up to %u, this context has room for %u (n_seq_max)",
                state.n_seq - 1, kv_far->get_n_seq_max());
    }

    std::optional<llama_self_extend_io_parts> checked;
    if (!on_device) {
        checked.emplace(io, state);
    }

    // what the near part cannot take, or the state does not have, is made from the far part
    if (parts[PART_NEAR]) {
        for (llama_seq_id s = 0; s < n_seq() && seq_id != -1; ++s) {
            near_make_room(s, kv_near->get_size());
        }
        if (can_turn() && (!state.has_part[PART_NEAR] || state.n_cells[PART_NEAR] > n_room_for(*kv_near, seq_id))) {
            parts[PART_NEAR] = nullptr;
        }
    }

    for (size_t i = 0; i < parts.size(); ++i) {
        const uint32_t n_room = parts[i] ? n_room_for(*parts[i], seq_id) : state.n_cells[i];

        if (state.n_cells[i] > n_room) {
            llama_self_extend_refuse("the state has %u tokens, this context has room for %u", state.n_cells[i], n_room);
        }
    }

    // from here on the old content is lost
    const auto used = get_used();

    if (parts[PART_FAR]) {
        // a state without cells would leave them. -1: all
        kv_near->seq_rm(seq_id, -1, -1);
    }
    for (auto * part : parts) {
        if (part) {
            part->seq_rm(seq_id, -1, -1);
        }
    }

    need_check = true;

    try {
        for (auto * part : parts) {
            if (part) {
                part->state_read(on_device ? io : *checked, seq_id, flags);
            }
        }
    } catch (...) {
        for (auto * part : get_parts(0)) {
            if (part) {
                part->state_clear(seq_id);
            }
        }
        begin_anew(used);
        throw;
    }

    if (parts[PART_FAR]) {
        set_groups(groups, seq_id);
    }
}
