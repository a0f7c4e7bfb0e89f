#include "llama-kv-cache-self-extend.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include <algorithm>
#include <cassert>
#include <cinttypes>
#include <iterator>
#include <limits>
#include <stdexcept>

//
// llama_kv_cache_self_extend
//

llama_kv_cache_self_extend::llama_kv_cache_self_extend(
                      const llama_model & model,
                    const llama_cparams & cparams,
         const llama_self_extend_config & config,
        std::unique_ptr<llama_kv_cache>   kv_far_new) :
    config(config), kv_far(std::move(kv_far_new)) {
    // a whole ubatch is stored before its first token is evaluated
    const uint32_t size_seqs = config.map.ga_w*(cparams.kv_unified ? cparams.n_seq_max : 1);
    const uint32_t size_near = std::min(kv_far->get_size(), GGML_PAD(size_seqs + cparams.n_ubatch, 256));

    LLAMA_LOG_INFO("%s: ga_n = %u, ga_w = %u, reach = %" PRId64 " tokens, far = %u cells, near = %u cells\n", __func__,
            config.map.ga_n, config.map.ga_w, config.n_ctx_reach, kv_far->get_size(), size_near);

    const std::vector<uint32_t> layer_ids = kv_far->get_layer_ids();

    const layer_filter_cb filter = [&](int32_t il) {
        return std::find(layer_ids.begin(), layer_ids.end(), uint32_t(il)) != layer_ids.end();
    };

    kv_near = std::make_unique<llama_kv_cache>(
            model, model.hparams, kv_far->type_k(), kv_far->type_v(),
            !cparams.flash_attn, cparams.offload_kqv, cparams.kv_unified, size_near, cparams.n_seq_max, 1,
            0, LLAMA_SWA_TYPE_NONE, nullptr, filter, nullptr, nullptr, "near_");

    if (config.attn == LLAMA_SELF_EXTEND_ATTN_FUSED) {
        for (uint32_t il : layer_ids) {
            if (!is_fused(il)) {
                llama_self_extend_refuse("the fused attention was asked for, but the cache of layer %u is not in CPU memory", il);
            }
        }
    }
}

bool llama_kv_cache_self_extend::is_fused(int32_t il) const {
    if (config.attn == LLAMA_SELF_EXTEND_ATTN_COMPOSED) {
        return false;
    }

    // the kernel is the CPU's. the scheduler would copy a cache in any other memory to it, for every token
    return ggml_backend_buffer_get_type(kv_far->get_k_storage(il)->buffer) == ggml_backend_cpu_buffer_type();
}

void llama_kv_cache_self_extend::clear(bool data) {
    kv_far ->clear(data);
    kv_near->clear(data);
}

llama_seq_id llama_kv_cache_self_extend::n_seq() const {
    return kv_far->get_n_stream() > 1 ? kv_far->get_n_stream() : LLAMA_MAX_SEQ;
}

bool llama_kv_cache_self_extend::near_has_window(llama_seq_id seq_id, llama_pos p1) const {
    const auto & far  = kv_far ->get_cells(seq_id).seq_pos_get(seq_id);
    const auto & near = kv_near->get_cells(seq_id).seq_pos_get(seq_id);

    auto far_end = far.lower_bound({ p1, 0 });
    if (far_end == far.begin()) {
        return true;
    }

    // the first position in the window of the next token
    const llama_pos p0 = std::clamp<llama_pos>(std::prev(far_end)->first - llama_pos(config.map.ga_w) + 2, 0, p1);

    auto it_far  = far .lower_bound({ p0, 0 });
    auto it_near = near.lower_bound({ p0, 0 });

    for (; it_far != far_end; ++it_far, ++it_near) {
        if (it_near == near.end() || it_near->first != it_far->first) {
            return false;
        }
    }

    return true;
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

bool llama_kv_cache_self_extend::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    // removing the tail of a sequence brings older keys into the window again
    for (llama_seq_id s = 0; s < n_seq(); ++s) {
        const llama_pos pos_max = seq_id == -1 || seq_id == s ? kv_far->seq_pos_max(s) : -1;

        if (p0 > 0 && p0 <= pos_max && (p1 < 0 || p1 > pos_max) && !near_has_window(s, p0)) {
            return false;
        }
    }

    bool res = true;

    res = res & kv_far ->seq_rm(seq_id, p0, p1);
    res = res & kv_near->seq_rm(seq_id, p0, p1);

    return res;
}

void llama_kv_cache_self_extend::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    kv_far ->seq_cp(seq_id_src, seq_id_dst, p0, p1);
    kv_near->seq_cp(seq_id_src, seq_id_dst, p0, p1);

    need_check = true;
}

void llama_kv_cache_self_extend::seq_keep(llama_seq_id seq_id) {
    kv_far ->seq_keep(seq_id);
    kv_near->seq_keep(seq_id);
}

void llama_kv_cache_self_extend::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    LLAMA_LOG_ERROR("%s: positions cannot be shifted with SelfExtend: seq_id = %d, p0 = %d, p1 = %d, shift = %d is ignored\n",
            __func__, seq_id, p0, p1, shift);
}

void llama_kv_cache_self_extend::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    LLAMA_LOG_ERROR("%s: positions cannot be divided with SelfExtend: seq_id = %d, p0 = %d, p1 = %d, d = %d is ignored\n",
            __func__, seq_id, p0, p1, d);
}

llama_pos llama_kv_cache_self_extend::seq_pos_min(llama_seq_id seq_id) const {
    // the far part holds the whole sequence: what the near part has forgotten is not lost
    return kv_far->seq_pos_min(seq_id);
}

llama_pos llama_kv_cache_self_extend::seq_pos_max(llama_seq_id seq_id) const {
    return kv_far->seq_pos_max(seq_id);
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_self_extend::memory_breakdown() const {
    auto mb = kv_far->memory_breakdown();
    for (const auto & [buft, size] : kv_near->memory_breakdown()) {
        mb[buft] += size;
    }
    return mb;
}

llama_memory_context_ptr llama_kv_cache_self_extend::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    balloc.split_reset();

    std::vector<llama_ubatch> ubatches;
    while (true) {
        auto ubatch = kv_far->get_n_stream() == 1 ? balloc.split_simple(n_ubatch) : balloc.split_equal(n_ubatch, true, 0);

        if (ubatch.n_tokens == 0) {
            break;
        }

        ubatches.push_back(std::move(ubatch)); // NOLINT
    }

    const auto failed = [] {
        return std::make_unique<llama_kv_cache_self_extend_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    };

    if (balloc.get_n_used() < balloc.get_n_tokens()) {
        return failed();
    }

    for (const auto & ubatch : ubatches) {
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            if (ubatch.pos[i] >= config.n_ctx_reach) {
                LLAMA_LOG_ERROR("%s: position %d is beyond the reach of ga_n = %u, ga_w = %u: %" PRId64 " tokens\n", __func__,
                        ubatch.pos[i], config.map.ga_n, config.map.ga_w, config.n_ctx_reach);
                return failed();
            }
        }
    }

    for (llama_seq_id s = 0; need_check && s < n_seq(); ++s) {
        if (!near_has_window(s, std::numeric_limits<llama_pos>::max())) {
            LLAMA_LOG_ERROR("%s: the near part no longer holds the window of sequence %d, remove the sequence and evaluate it again\n",
                    __func__, s);
            return failed();
        }
    }
    need_check = false;

    auto sinfos_far = kv_far->prepare(ubatches);
    if (sinfos_far.empty()) {
        return failed();
    }

    return std::make_unique<llama_kv_cache_self_extend_context>(this, std::move(sinfos_far), std::move(ubatches));
}

llama_memory_context_ptr llama_kv_cache_self_extend::init_full() {
    return std::make_unique<llama_kv_cache_self_extend_context>(this);
}

llama_memory_context_ptr llama_kv_cache_self_extend::init_update(llama_context * lctx, bool optimize) {
    return std::make_unique<llama_kv_cache_self_extend_context>(this, lctx, optimize);
}

bool llama_kv_cache_self_extend::get_can_shift() const {
    return false;
}

// a state holds the keys in both frames, so it can only be read with the same pair
static constexpr uint32_t SELF_EXTEND_STATE_MAGIC   = 0x45584553; // "SEXE"
static constexpr uint32_t SELF_EXTEND_STATE_VERSION = 1;

void llama_kv_cache_self_extend::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    const uint32_t header[] = { SELF_EXTEND_STATE_MAGIC, SELF_EXTEND_STATE_VERSION, config.map.ga_n, config.map.ga_w };

    io.write(header, sizeof(header));

    kv_far ->state_write(io, seq_id, flags);
    kv_near->state_write(io, seq_id, flags);
}

void llama_kv_cache_self_extend::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    uint32_t header[4];

    io.read(header, sizeof(header));

    if (header[0] != SELF_EXTEND_STATE_MAGIC || header[1] != SELF_EXTEND_STATE_VERSION) {
        throw std::runtime_error("the state was not saved with SelfExtend");
    }
    if (header[2] != config.map.ga_n || header[3] != config.map.ga_w) {
        throw std::runtime_error("the state was saved with another ga_n or ga_w");
    }

    // a part without cells leaves what the sequence had before
    if (seq_id != -1) {
        kv_far ->seq_rm(seq_id, -1, -1);
        kv_near->seq_rm(seq_id, -1, -1);

        for (llama_seq_id s = 0; s < n_seq(); ++s) {
            near_make_room(s, kv_near->get_size());
        }
    }

    need_check = true;

    try {
        kv_far ->state_read(io, seq_id, flags);
        kv_near->state_read(io, seq_id, flags);
    } catch (...) {
        kv_far ->state_clear(seq_id);
        kv_near->state_clear(seq_id);
        throw;
    }
}

llama_kv_cache * llama_kv_cache_self_extend::get_far() const {
    return kv_far.get();
}

llama_kv_cache * llama_kv_cache_self_extend::get_near() const {
    return kv_near.get();
}

const llama_self_extend_map & llama_kv_cache_self_extend::get_map() const {
    return config.map;
}

static uint64_t n_bytes(const llama_kv_cache & kv) {
    uint64_t res = 0;
    for (const auto & [_, size] : kv.memory_breakdown()) {
        res += size;
    }
    return res;
}

llama_self_extend_info llama_kv_cache_self_extend::get_info() const {
    const auto layer_ids = kv_far->get_layer_ids();
    const auto n_fused   = std::count_if(layer_ids.begin(), layer_ids.end(), [&](uint32_t il) { return is_fused(il); });

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

//
// llama_kv_cache_self_extend_context
//

llama_kv_cache_self_extend_context::llama_kv_cache_self_extend_context(llama_memory_status status) : status(status) {}

llama_kv_cache_self_extend_context::llama_kv_cache_self_extend_context(
        llama_kv_cache_self_extend * kv) :
    kv(kv),
    ctx_far (kv->get_far ()->init_full()),
    ctx_near(kv->get_near()->init_full()),
    status(llama_memory_status_combine(ctx_far->get_status(), ctx_near->get_status())) {
}

llama_kv_cache_self_extend_context::llama_kv_cache_self_extend_context(
        llama_kv_cache_self_extend * kv,
        llama_context * lctx,
        bool optimize) :
    kv(kv),
    ctx_far (kv->get_far ()->init_update(lctx, optimize)),
    ctx_near(kv->get_near()->init_update(lctx, optimize)),
    status(llama_memory_status_combine(ctx_far->get_status(), ctx_near->get_status())) {
}

llama_kv_cache_self_extend_context::llama_kv_cache_self_extend_context(
        llama_kv_cache_self_extend * kv,
        slot_info_vec_t sinfos_far,
        std::vector<llama_ubatch> ubatches) :
    kv(kv),
    ubatches(std::move(ubatches)),
    ctx_far(new llama_kv_cache_context(kv->get_far(), std::move(sinfos_far), this->ubatches)),
    status(ctx_far->get_status()) {
}

llama_kv_cache_self_extend_context::~llama_kv_cache_self_extend_context() = default;

bool llama_kv_cache_self_extend_context::next() {
    assert(status == LLAMA_MEMORY_STATUS_SUCCESS);

    ctx_far->next();

    return ++i_next < ubatches.size();
}

bool llama_kv_cache_self_extend_context::apply() {
    assert(!llama_memory_status_is_fail(status));

    // ubatches -> this is not a KV cache update
    if (!ubatches.empty()) {
        const auto & ubatch = ubatches[i_next];

        auto sinfo = kv->find_near(ubatch);
        if (sinfo.empty()) {
            LLAMA_LOG_ERROR("%s: the near part has no room for a ubatch of %u tokens: more sequences than n_seq_max?\n", __func__, ubatch.n_tokens);
            return false;
        }

        ctx_near = std::make_unique<llama_kv_cache_context>(kv->get_near(), slot_info_vec_t { std::move(sinfo) }, std::vector<llama_ubatch> { ubatch });
    }

    bool res = true;

    res = res & ctx_far ->apply();
    res = res & ctx_near->apply();

    return res;
}

llama_memory_status llama_kv_cache_self_extend_context::get_status() const {
    return status;
}

const llama_ubatch & llama_kv_cache_self_extend_context::get_ubatch() const {
    assert(status == LLAMA_MEMORY_STATUS_SUCCESS);

    return ubatches[i_next];
}

const llama_kv_cache_self_extend * llama_kv_cache_self_extend_context::get_kv() const {
    return kv;
}

const llama_kv_cache_context * llama_kv_cache_self_extend_context::get_far() const {
    return static_cast<const llama_kv_cache_context *>(ctx_far.get());
}

const llama_kv_cache_context * llama_kv_cache_self_extend_context::get_near() const {
    return static_cast<const llama_kv_cache_context *>(ctx_near.get());
}
