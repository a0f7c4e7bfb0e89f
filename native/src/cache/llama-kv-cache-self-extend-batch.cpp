#include "cache/llama-kv-cache-self-extend.h"

#include "llama-batch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cinttypes>
#include <limits>
#include <type_traits>

//
// checks
//

bool llama_kv_cache_self_extend::check_batch(const llama_batch & batch) const {
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const auto     map  = get_map(batch.seq_id[i][0]);
        const uint32_t need = raised(map.ga_n, batch.pos[i]);

        if (need == 0) {
            const llama_self_extend_map last = get_map_max(batch.seq_id[i][0]);

            LLAMA_LOG_ERROR("%s: position %d is beyond the reach of ga_n = %u, ga_w = %u: %" PRId64 " tokens\n", __func__,
                    batch.pos[i], last.ga_n, last.ga_w, last.n_ctx_reach(config.n_ctx_train));
            return false;
        }
        if (need != map.ga_n && !can_turn()) {
            LLAMA_LOG_ERROR("%s: position %d is beyond the reach of ga_n = %u, ga_w = %u, and the keys of this model cannot be turned to another group\n",
                    __func__, batch.pos[i], map.ga_n, map.ga_w);
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
        const bool is_lost = has_lost(s);

        if (!is_lost && near_missing(s, p_end).empty() && swa_has_window(s, p_end)) {
            continue;
        }

        need_check = true;

        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            if (std::find(batch.seq_id[i], batch.seq_id[i] + batch.n_seq_id[i], s) != batch.seq_id[i] + batch.n_seq_id[i]) {
                LLAMA_LOG_ERROR("%s: the %s of sequence %d %s, remove the sequence and evaluate it again\n", __func__,
                        is_lost ? "keys" : "window", s, is_lost ? "were lost when they were turned" : "is incomplete");
                return false;
            }
        }
    }

    return true;
}

//
// memory contexts
//

// T: llama.cpp's context, of which this is one
template <typename T>
class self_extend_context : public T, public llama_self_extend_mctx {
public:
    template <typename ... Args>
    self_extend_context(llama_kv_cache_self_extend * kv, llama_memory_context_ptr ctx_near, Args && ... args) :
        T(std::forward<Args>(args)...), llama_self_extend_mctx(kv, std::move(ctx_near)) {}

    bool apply() override {
        const auto & ubatch = T::get_ubatch();

        if (!get_kv()->apply_raise(ubatch) || !apply_near(ubatch) || !T::apply()) {
            return false;
        }
        get_kv()->apply_groups(ubatch);

        return true;
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

std::vector<llama_ubatch> llama_kv_cache_self_extend::split(llama_batch_allocr & balloc, uint32_t n_ubatch, bool simple) const {
    const bool unified = kv_far->get_n_stream() == 1;

    std::vector<llama_ubatch> res;
    std::vector<uint32_t>     sizes; // of each ubatch at most: one that a group is raised in is made again, shorter

    while (true) {
        auto streams = ga_n_streams;
        bool is_cut  = false;

        balloc.split_reset();
        res.clear();

        while (!is_cut) {
            if (sizes.size() == res.size()) {
                sizes.push_back(n_ubatch);
            }

            uint32_t & size   = sizes[res.size()];
            auto       ubatch = simple ? balloc.split_simple(size) : balloc.split_equal(size, !unified, 0);

            if (ubatch.n_tokens == 0) {
                break;
            }

            const uint32_t n = raise(streams, ubatch);

            if (n < ubatch.n_tokens) {
                is_cut = true;
                size   = n;
            } else {
                res.push_back(std::move(ubatch)); // NOLINT
            }
        }

        if (!is_cut) {
            break;
        }
    }

    if (balloc.get_n_used() < balloc.get_n_tokens()) {
        res.clear();
    }

    return res;
}

llama_kv_cache::slot_info_vec_t llama_kv_cache_self_extend::prepare_swa(
        const std::vector<llama_ubatch> & ubatches, const llama_kv_cache::slot_info_vec_t & sinfos_far) const {
    auto & swa = *kv_iswa->get_swa();

    // left to itself it takes the cells of what has left the window before it looks for empty ones, and forgets all that is older
    const auto is_free = [&](const llama_kv_cache::slot_info & sinfo) {
        for (size_t s = 0; s < sinfo.n_stream(); ++s) {
            const auto & cells = swa.get_cells(sinfo.strm[s]);

            if (!std::all_of(sinfo.idxs[s].begin(), sinfo.idxs[s].end(), [&](uint32_t i) { return cells.is_empty(i); })) {
                return false;
            }
        }
        return true;
    };

    const bool mirrors = swa.get_size() == kv_far->get_size() && std::all_of(sinfos_far.begin(), sinfos_far.end(), is_free);

    return mirrors ? sinfos_far : swa.prepare(ubatches);
}

llama_memory_context_ptr llama_kv_cache_self_extend::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    const bool unified = kv_far->get_n_stream() == 1;
    const bool ok      = !need_turn && check_batch(balloc.get_batch()) && check_windows(balloc.get_batch());

    for (bool simple : { true, false }) {
        if (!ok || (simple && !unified)) {
            continue;
        }

        auto ubatches = split(balloc, n_ubatch, simple);

        auto sinfos_far = kv_far->prepare(ubatches);
        if (sinfos_far.empty()) {
            continue;
        }

        if (!kv_iswa) {
            return std::make_unique<self_extend_context_kv>(this, nullptr, kv_far, std::move(sinfos_far), std::move(ubatches));
        }

        auto sinfos_swa = prepare_swa(ubatches, sinfos_far);
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

// carries out what is pending: copies between streams and shifts in all parts, then groups of the far part, and then the windows of the
// near part
class self_extend_update_context : public llama_memory_context_i {
public:
    self_extend_update_context(
            llama_kv_cache_self_extend * kv, llama_context * lctx, bool turn, bool restore,
            llama_memory_context_ptr ctx_mem, llama_memory_context_ptr ctx_near) :
        kv(kv), lctx(lctx), turn(turn), restore(restore), ctx_mem(std::move(ctx_mem)), ctx_near(std::move(ctx_near)) {}

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

        // what a shift that failed has left is counted from the group of before
        res = res && (!turn || (!kv->get_far()->get_has_shift() && kv->turn_far(lctx)));

        return res && (!restore || kv->restore_near(lctx));
    }

    llama_memory_status get_status() const override {
        return turn || restore ? LLAMA_MEMORY_STATUS_SUCCESS : llama_memory_status_combine(ctx_mem->get_status(), ctx_near->get_status());
    }

    const llama_ubatch & get_ubatch() const override {
        GGML_ABORT("an update has no ubatch");
    }

private:
    llama_kv_cache_self_extend * const kv;
    llama_context              * const lctx;

    const bool turn;
    const bool restore;

    const llama_memory_context_ptr ctx_mem;
    const llama_memory_context_ptr ctx_near;
};

// optimize: llama_decode() tries again what could not be prepared. what failed to be turned waits for the next batch: whatever stopped it
// would do so again, and more would be lost
llama_memory_context_ptr llama_kv_cache_self_extend::init_update(llama_context * lctx, bool optimize) {
    owner = lctx;

    bool restore = false;

    for (llama_seq_id s = 0; need_check && can_turn() && s < n_seq() && !restore; ++s) {
        restore = !has_lost(s) && !near_missing(s, std::numeric_limits<llama_pos>::max()).empty();
    }

    return std::make_unique<self_extend_update_context>(
            this, lctx, need_turn && !optimize, restore, mem->init_update(lctx, optimize), kv_near->init_update(lctx, optimize));
}
