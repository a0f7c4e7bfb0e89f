#include "cache/llama-kv-cache-self-extend.h"

#include "attention/llama-self-extend-attn.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cassert>
#include <cinttypes>
#include <iterator>
#include <limits>
#include <tuple>
#include <type_traits>

//
// llama_kv_cache_self_extend
//

llama_kv_cache_self_extend::llama_kv_cache_self_extend(
                      const llama_model & model,
                    const llama_cparams & cparams,
         const llama_self_extend_config & config,
                             restore_cb   compute_restore,
                       llama_memory_ptr   mem_new) :
    model(model), config(config), compute_restore(compute_restore), mem(std::move(mem_new)),
    kv_iswa(dynamic_cast<llama_kv_cache_iswa *>(mem.get())),
    kv_far (kv_iswa ? kv_iswa->get_base() : dynamic_cast<llama_kv_cache *>(mem.get())),
    layer_ids(kv_far->get_layer_ids()),
    v_trans(!cparams.flash_attn),
    ropes(model.hparams.n_layer_all) {
    if (layer_ids.empty()) {
        llama_self_extend_refuse("architecture '%s' is not supported: all of its layers have a window of their own", llm_arch_name(model.arch));
    }

    // a whole ubatch is stored before its first token is evaluated. sequences that share cells of the far part may each have
    // their own here
    const uint32_t n_seq_cells = cparams.kv_unified ? cparams.n_seq_max : 1;
    const uint32_t size_window = std::min(kv_far->get_size(), config.map.ga_w);
    const uint32_t size_padded = GGML_PAD(size_window*n_seq_cells + cparams.n_ubatch, 256);
    const uint32_t size_near   = n_seq_cells > 1 ? size_padded : std::min(kv_far->get_size(), size_padded);

    LLAMA_LOG_INFO("%s: ga_n = %u, ga_w = %u, reach = %" PRId64 " tokens, far = %u cells, near = %u cells, %zu layers\n", __func__,
            config.map.ga_n, config.map.ga_w, config.n_ctx_reach, kv_far->get_size(), size_near, layer_ids.size());

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

void llama_kv_cache_self_extend::clear(bool data) {
    mem    ->clear(data);
    kv_near->clear(data);
}

llama_seq_id llama_kv_cache_self_extend::n_seq() const {
    return kv_far->get_n_stream() > 1 ? kv_far->get_n_stream() : LLAMA_MAX_SEQ;
}

//
// the near part
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

            if (sinfo.empty() || !compute_restore(*this, lctx, ubatch, sinfo, cells_far)) {
                LLAMA_LOG_ERROR("%s: failed to restore the window of sequence %d\n", __func__, s);
                return false;
            }

            kv_near->apply_ubatch(sinfo, ubatch);
        }
    }

    return true;
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

    bool res = true;

    res = res & mem    ->seq_rm(seq_id, p0, p1);
    res = res & kv_near->seq_rm(seq_id, p0, p1);

    return res;
}

void llama_kv_cache_self_extend::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    mem    ->seq_cp(seq_id_src, seq_id_dst, p0, p1);
    kv_near->seq_cp(seq_id_src, seq_id_dst, p0, p1);

    need_check = true;
}

void llama_kv_cache_self_extend::seq_keep(llama_seq_id seq_id) {
    mem    ->seq_keep(seq_id);
    kv_near->seq_keep(seq_id);
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

    if (std::prev(it_last)->first + int64_t(shift) >= config.n_ctx_reach) {
        LLAMA_LOG_ERROR("%s: position %d + %d is beyond the reach of ga_n = %u, ga_w = %u: %" PRId64 " tokens, the shift is ignored\n",
                __func__, std::prev(it_last)->first, shift, config.map.ga_n, config.map.ga_w, config.n_ctx_reach);
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

    mem    ->seq_add(seq_id, p0, p1, shift);
    kv_near->seq_add(seq_id, p0, p1, shift);

    need_check = true;
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

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_self_extend::memory_breakdown() const {
    auto mb = mem->memory_breakdown();
    for (const auto & [buft, size] : kv_near->memory_breakdown()) {
        mb[buft] += size;
    }
    return mb;
}

bool llama_kv_cache_self_extend::get_can_shift() const {
    // a shift brings tokens together that were apart: nothing may have been forgotten
    if (!mem->get_can_shift() || !can_turn() || !swa_has_all()) {
        return false;
    }

    // llama.cpp shifts the layers with a window of their own, and scales their keys once more where RoPE has a magnitude
    return !kv_iswa || std::all_of(layer_ids.begin(), layer_ids.end(), [&](uint32_t il) { return get_rope(il)->magnitude == 1.0f; });
}

//
// batches
//

bool llama_kv_cache_self_extend::check_batch(const llama_batch & batch) const {
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (batch.pos[i] >= config.n_ctx_reach) {
            LLAMA_LOG_ERROR("%s: position %d is beyond the reach of ga_n = %u, ga_w = %u: %" PRId64 " tokens\n", __func__,
                    batch.pos[i], config.map.ga_n, config.map.ga_w, config.n_ctx_reach);
            return false;
        }

        for (uint32_t d = 1; !batch.token && d < std::min(3u, model.hparams.n_pos_per_embd()); ++d) {
            if (batch.pos[i] != batch.pos[i + d*batch.n_tokens]) {
                LLAMA_LOG_ERROR("%s: images have positions in several dimensions, which SelfExtend does not define\n", __func__);
                return false;
            }
        }
    }

    return true;
}

bool llama_kv_cache_self_extend::check_windows(const llama_batch & batch) {
    if (!need_check) {
        return true;
    }

    constexpr llama_pos p_end = std::numeric_limits<llama_pos>::max();

    need_check = false;

    for (llama_seq_id s = 0; s < n_seq(); ++s) {
        if (near_missing(s, p_end).empty() && swa_has_window(s, p_end)) {
            continue;
        }

        need_check = true;

        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            if (std::find(batch.seq_id[i], batch.seq_id[i] + batch.n_seq_id[i], s) != batch.seq_id[i] + batch.n_seq_id[i]) {
                LLAMA_LOG_ERROR("%s: the window of sequence %d is incomplete, remove the sequence and evaluate it again\n", __func__, s);
                return false;
            }
        }
    }

    return true;
}

// T: llama.cpp's context, of which this is one
template <typename T>
class self_extend_context : public T, public llama_self_extend_mctx {
public:
    template <typename ... Args>
    self_extend_context(llama_kv_cache_self_extend * kv, llama_memory_context_ptr ctx_near, Args && ... args) :
        T(std::forward<Args>(args)...), llama_self_extend_mctx(kv, std::move(ctx_near)) {}

    bool apply() override {
        return apply_near(T::get_ubatch()) && T::apply();
    }

    const llama_kv_cache_context * get_far() const override {
        if constexpr (std::is_same_v<T, llama_kv_cache_iswa_context>) {
            return T::get_base();
        } else {
            return this;
        }
    }
};

using self_extend_context_kv   = self_extend_context<llama_kv_cache_context>;
using self_extend_context_iswa = self_extend_context<llama_kv_cache_iswa_context>;

// split a batch as llama.cpp's caches do; empty if it cannot be split this way
static std::vector<llama_ubatch> split(llama_batch_allocr & balloc, uint32_t n_ubatch, bool simple, bool unified) {
    balloc.split_reset();

    std::vector<llama_ubatch> res;
    while (true) {
        auto ubatch = simple ? balloc.split_simple(n_ubatch) : balloc.split_equal(n_ubatch, !unified, 0);

        if (ubatch.n_tokens == 0) {
            break;
        }

        res.push_back(std::move(ubatch)); // NOLINT
    }

    if (balloc.get_n_used() < balloc.get_n_tokens()) {
        res.clear();
    }

    return res;
}

llama_memory_context_ptr llama_kv_cache_self_extend::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    const bool unified = kv_far->get_n_stream() == 1;
    const bool ok      = check_batch(balloc.get_batch()) && check_windows(balloc.get_batch());

    for (bool simple : { true, false }) {
        if (!ok || (simple && !unified)) {
            continue;
        }

        auto ubatches = split(balloc, n_ubatch, simple, unified);

        auto sinfos_far = kv_far->prepare(ubatches);
        if (sinfos_far.empty()) {
            continue;
        }

        if (!kv_iswa) {
            return std::make_unique<self_extend_context_kv>(this, nullptr, kv_far, std::move(sinfos_far), std::move(ubatches));
        }

        auto sinfos_swa = kv_iswa->get_swa()->prepare(ubatches);
        if (sinfos_swa.empty()) {
            continue;
        }

        return std::make_unique<self_extend_context_iswa>(
                this, nullptr, kv_iswa, std::move(sinfos_far), std::move(sinfos_swa), std::move(ubatches));
    }

    return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr llama_kv_cache_self_extend::init_full() {
    if (kv_iswa) {
        return std::make_unique<self_extend_context_iswa>(this, kv_near->init_full(), kv_iswa);
    }

    return std::make_unique<self_extend_context_kv>(this, kv_near->init_full(), kv_far);
}

llama_kv_cache_self_extend * llama_self_extend_mctx::get_kv() const {
    return kv;
}

const llama_kv_cache_context * llama_self_extend_mctx::get_near() const {
    return static_cast<const llama_kv_cache_context *>(ctx_near.get());
}

const llama_kv_cache::slot_info & llama_self_extend_mctx::get_slot_near() const {
    return slot_near;
}

llama_self_extend_mctx::llama_self_extend_mctx(llama_kv_cache_self_extend * kv, llama_memory_context_ptr ctx_near) :
    kv(kv), ctx_near(std::move(ctx_near)) {}

bool llama_self_extend_mctx::apply_near(const llama_ubatch & ubatch) {
    slot_near = kv->find_near(ubatch);
    if (slot_near.empty()) {
        LLAMA_LOG_ERROR("%s: the near part has no room for a ubatch of %u tokens: more sequences than n_seq_max?\n", __func__, ubatch.n_tokens);
        return false;
    }

    ctx_near = std::make_unique<llama_kv_cache_context>(
            kv->get_near(), llama_kv_cache::slot_info_vec_t { slot_near }, std::vector<llama_ubatch> { ubatch });

    return ctx_near->apply();
}

//
// updates
//

// carries out what is pending: copies between streams and shifts in all parts, and then the windows of the near part
class self_extend_update_context : public llama_memory_context_i {
public:
    self_extend_update_context(
            llama_kv_cache_self_extend * kv, llama_context * lctx, bool restore,
            llama_memory_context_ptr ctx_mem, llama_memory_context_ptr ctx_near) :
        kv(kv), lctx(lctx), restore(restore), ctx_mem(std::move(ctx_mem)), ctx_near(std::move(ctx_near)) {}

    bool next() override {
        return false;
    }

    bool apply() override {
        bool res = true;

        for (const auto & ctx : { ctx_mem.get(), ctx_near.get() }) {
            if (ctx->get_status() == LLAMA_MEMORY_STATUS_SUCCESS) {
                res = ctx->apply() && res;
            }
        }

        return res && (!restore || kv->restore_near(lctx));
    }

    llama_memory_status get_status() const override {
        return restore ? LLAMA_MEMORY_STATUS_SUCCESS : llama_memory_status_combine(ctx_mem->get_status(), ctx_near->get_status());
    }

    const llama_ubatch & get_ubatch() const override {
        GGML_ABORT("an update has no ubatch");
    }

private:
    llama_kv_cache_self_extend * const kv;
    llama_context              * const lctx;

    const bool restore;

    const llama_memory_context_ptr ctx_mem;
    const llama_memory_context_ptr ctx_near;
};

llama_memory_context_ptr llama_kv_cache_self_extend::init_update(llama_context * lctx, bool optimize) {
    bool restore = false;

    for (llama_seq_id s = 0; need_check && can_turn() && s < n_seq() && !restore; ++s) {
        restore = !near_missing(s, std::numeric_limits<llama_pos>::max()).empty();
    }

    return std::make_unique<self_extend_update_context>(
            this, lctx, restore, mem->init_update(lctx, optimize), kv_near->init_update(lctx, optimize));
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

const llama_self_extend_map & llama_kv_cache_self_extend::get_map() const {
    return config.map;
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
        /*.ga_w             =*/ config.map.ga_w,
        /*.n_ctx_train      =*/ config.n_ctx_train,
        /*.n_layer_fused    =*/ uint32_t(n_fused),
        /*.n_layer_composed =*/ uint32_t(layer_ids.size() - n_fused),
        /*.n_ctx_reach      =*/ uint64_t(config.n_ctx_reach),
        /*.n_bytes_far      =*/ n_bytes(*kv_far),
        /*.n_bytes_near     =*/ n_bytes(*kv_near),
    };
}
