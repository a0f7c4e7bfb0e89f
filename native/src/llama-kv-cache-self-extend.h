#pragma once

#include "llama-self-extend-impl.h"

#include "llama-kv-cache.h"

#include <memory>
#include <vector>

//
// llama_kv_cache_self_extend
//

// utilizes two instances of llama_kv_cache, both for all layers of the model:
//   - far  holds all keys of the context, rotated at their grouped positions
//   - near holds the keys of the neighbour window, rotated at their own positions; it forgets what leaves the window
// both are written when a batch is evaluated, and no key is rotated again after that

class llama_kv_cache_self_extend : public llama_memory_i {
public:
    llama_kv_cache_self_extend(
                          const llama_model & model,
                        const llama_cparams & cparams,
             const llama_self_extend_config & config,
            std::unique_ptr<llama_kv_cache>   kv_far);

    ~llama_kv_cache_self_extend() = default;

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(
            llama_batch_allocr & balloc,
            uint32_t n_ubatch,
            bool embd_all) override;

    llama_memory_context_ptr init_full() override;

    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    // moving positions would have to move keys between groups, which is not implemented
    bool get_can_shift() const override;

    void clear(bool data) override;

    // returns false, and removes nothing, if the keys that come into the window again are no longer in the near part.
    // where a copy or a state leaves the near part without them, batches are refused until that sequence is removed
    bool seq_rm  (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id)                                                          override;

    // refused: an error is logged and nothing changes
    void seq_add (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // state write/load

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    //
    // llama_kv_cache_self_extend specific API
    //

    llama_kv_cache * get_far () const;
    llama_kv_cache * get_near() const;

    const llama_self_extend_map & get_map() const;

    llama_self_extend_info get_info() const;

    // is the attention of a layer computed by the fused kernel?
    bool is_fused(int32_t il) const;

    // Cells of the near part for a ubatch that is not stored yet. Forgets what has left the window if they are needed.
    // returns an empty slot_info if there are not enough
    llama_kv_cache::slot_info find_near(const llama_ubatch & ubatch);

private:
    const llama_self_extend_config config;

    std::unique_ptr<llama_kv_cache> kv_far;
    std::unique_ptr<llama_kv_cache> kv_near;

    // has something happened since the last batch after which the near part may lack keys of a window?
    bool need_check = false;

    llama_seq_id n_seq() const;

    // Free up to n cells of the near part, from what a sequence no longer has in its window, oldest first and no more than
    // needed: what stays allows to go back without evaluating anything again.
    void near_make_room(llama_seq_id seq_id, uint32_t n);

    // does the near part hold the window of a token that follows the far positions below p1?
    bool near_has_window(llama_seq_id seq_id, llama_pos p1) const;
};

class llama_kv_cache_self_extend_context : public llama_memory_context_i {
public:
    using slot_info_vec_t = llama_kv_cache::slot_info_vec_t;

    // used for errors
    llama_kv_cache_self_extend_context(llama_memory_status status);

    // used to create a full-cache context
    llama_kv_cache_self_extend_context(
            llama_kv_cache_self_extend * kv);

    // used to create an update context
    llama_kv_cache_self_extend_context(
            llama_kv_cache_self_extend * kv,
            llama_context * lctx,
            bool optimize);

    // used to create a batch processing context from a batch
    // the cells of the near part are found when each ubatch is applied: what a later one has to push out of the window
    // is still needed by an earlier one
    llama_kv_cache_self_extend_context(
            llama_kv_cache_self_extend * kv,
            slot_info_vec_t sinfos_far,
            std::vector<llama_ubatch> ubatches);

    virtual ~llama_kv_cache_self_extend_context();

    //
    // llama_memory_context_i
    //

    bool next()  override;
    bool apply() override;

    llama_memory_status  get_status() const override;
    const llama_ubatch & get_ubatch() const override;

    //
    // llama_kv_cache_self_extend_context specific API
    //

    const llama_kv_cache_self_extend * get_kv() const;

    const llama_kv_cache_context * get_far () const;
    const llama_kv_cache_context * get_near() const;

private:
    llama_kv_cache_self_extend * kv = nullptr;

    // the index of the next ubatch to process
    size_t i_next = 0;

    std::vector<llama_ubatch> ubatches;

    const llama_memory_context_ptr ctx_far;
          llama_memory_context_ptr ctx_near; // of the current ubatch

    const llama_memory_status status;
};
