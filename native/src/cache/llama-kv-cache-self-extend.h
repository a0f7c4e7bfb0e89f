#pragma once

#include "cache/llama-kv-cache-self-extend-way.h"
#include "params/llama-self-extend-params.h"
#include "rope/llama-self-extend-freqs.h"
#include "rope/llama-self-extend-rope.h"
#include "state/llama-self-extend-state.h"

#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"

#include <memory>
#include <optional>
#include <vector>

//
// llama_kv_cache_self_extend
//

// The cache that llama.cpp made for the model, and beside it a second llama_kv_cache for the layers that are extended:
//   - far  (llama.cpp's own) holds all keys of the context, rotated at their positions in the group size of the sequence
//   - near (ours) holds the keys of the neighbour window, rotated at their own positions; it forgets what leaves the window
// Both are written when a batch is evaluated. What near has forgotten and needs again is made from far.
// With llama_kv_cache_iswa, far is its part for the layers without a window of their own; the others are left alone.

class llama_kv_cache_self_extend : public llama_memory_i {
public:
    // Graphs that turn cached keys. Handed in, since graphs are made of the cache and not the other way round.
    // Each returns false if it cannot be computed.
    struct turn_graphs {
        // Store the keys and values of cells of the far part in cells of the near part, with the keys turned to their own positions.
        // ubatch: positions of one sequence, not applied yet
        // sinfo: their cells in the near part
        // cells_far [n_tokens]: their cells in the far part
        bool (*restore)(
                const llama_kv_cache_self_extend & kv,
                                   llama_context * lctx,
                              const llama_ubatch & ubatch,
                 const llama_kv_cache::slot_info & sinfo,
                     const std::vector<uint32_t> & cells_far);

        // Turn keys of the far part further.
        // rows [n]: their cells, those of all streams counted one after the other
        // deltas [n]: by how many positions of get_freqs()
        bool (*turn)(
                const llama_kv_cache_self_extend & kv,
                                   llama_context * lctx,
                      const std::vector<int32_t> & rows,
                      const std::vector<int32_t> & deltas);
    };

    // mem: a llama_kv_cache or a llama_kv_cache_iswa
    llama_kv_cache_self_extend(
                          const llama_model & model,
                        const llama_cparams & cparams,
             const llama_self_extend_config & config,
                        const turn_graphs & graphs,
                           llama_memory_ptr   mem);

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

    // false for models whose cached keys cannot be turned to another position without loss
    bool get_can_shift() const override;

    void clear(bool data) override;

    // Returns false, and removes nothing, if keys that the next token would need again are lost:
    // never for a model whose keys can be turned and that has no layers with a window of their own
    bool seq_rm  (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id)                                                          override;

    // if it cannot be done an error is logged and nothing changes
    void seq_add (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1, llama_pos shift) override;

    // refused: an error is logged and nothing changes
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

    llama_self_extend_info get_info() const;

    uint32_t get_ga_w() const;

    bool has_seq(llama_seq_id seq_id) const;

    // in force for the next tokens of a sequence
    llama_self_extend_map get_map(llama_seq_id seq_id) const;

    // Throws a sentence, and changes nothing, if it cannot be done. Keys are turned with the next update.
    void set_group(llama_seq_id seq_id, uint32_t ga_n);

    // Choose the group size of a text of n_tokens tokens, of which n_kept are cached and no others.
    // returns false if they have to be evaluated again
    bool follow(llama_seq_id seq_id, int64_t n_kept, int64_t n_tokens);

    // that in which the far key of a cell is rotated: not yet the same after a change
    llama_self_extend_map get_map_cell(uint32_t strm, uint32_t i) const;

    // The map that a sequence begins with. All have its type and its window.
    const llama_self_extend_map & get_map() const;

    // The frequencies of the far frames, with positions in parts that all of them can be counted in: those in which cached keys are
    // rotated, and those that they are turned to.
    llama_self_extend_freqs get_freqs() const;

    // is the key of a cell lost?
    bool is_lost(uint32_t strm, uint32_t i) const;

    // How often a batch was interrupted to turn keys: a graph of before is no longer allocated.
    uint32_t get_n_raised() const;

    // Raise the groups of the streams that do not reach a ubatch, and turn their far keys.
    // returns false if that fails
    bool apply_raise(const llama_ubatch & ubatch);

    // A ubatch has got its cells.
    void apply_groups(const llama_ubatch & ubatch);

    // is the layer one of those whose attention is extended?
    bool is_extended(int32_t il) const;

    // how the attention of a layer is computed
    llama_self_extend_way get_way(int32_t il) const;

    // The RoPE of the keys of a layer, kept when a graph is built. nullptr: its keys cannot be turned
    const llama_self_extend_rope * get_rope(int32_t il) const;
    void set_rope(int32_t il, const ggml_tensor * k_cur);

    // Cells of the near part for a ubatch that is not stored yet. Forgets what has left the window if they are needed.
    // returns an empty slot_info if there are not enough
    llama_kv_cache::slot_info find_near(const llama_ubatch & ubatch);

    // Turn the far keys that are not in the group of their stream.
    // returns false if that fails; batches of sequences whose keys were lost are refused
    bool turn_far(llama_context * lctx);

    // Make the keys and values that the windows lack from the far part.
    // returns false if that fails; batches are refused as long as a window lacks some
    bool restore_near(llama_context * lctx);

private:
    const llama_model & model;

    const llama_self_extend_config config;

    const turn_graphs graphs;

    const llama_memory_ptr mem;

    llama_kv_cache_iswa * const kv_iswa; // mem, if it is one
    llama_kv_cache      * const kv_far;  // of mem

    std::unique_ptr<llama_kv_cache> kv_near;

    std::vector<uint32_t> layer_ids; // of the layers that are extended

    std::vector<llama_self_extend_way> ways; // [n_layer]

    bool v_trans; // are the values stored transposed?

    mutable uint64_t fingerprint = 0; // of the model, computed when a state is written or read

    std::vector<std::optional<llama_self_extend_rope>> ropes; // [n_layer]

    // group sizes: of each stream, [n_stream], and that in which each far key is rotated, [n_stream][n_cells]
    std::vector<uint32_t>              ga_n_streams;
    std::vector<std::vector<uint32_t>> ga_n_cells;

    static constexpr uint32_t GA_N_LOST = 0; // of a key that was being turned when that failed

    uint32_t n_raised = 0;

    llama_context * owner = nullptr; // whose memory this is, from the first update on

    // has something happened since the last batch after which the near part may lack keys of a window?
    bool need_check = false;

    // and after which far keys may not be in the group of their stream?
    bool need_turn = false;

    llama_seq_id n_seq() const;

    llama_pos stream_pos_max(uint32_t strm) const;

    // Which streams of the far part hold anything? Those that no longer do begin anew.
    std::vector<bool> get_used() const;
    void begin_anew(const std::vector<bool> & was_used);

    // the map with a group size
    llama_self_extend_map map_of(uint32_t ga_n) const;

    // that with which a sequence reaches furthest
    llama_self_extend_map get_map_max(llama_seq_id seq_id) const;

    // the group size in which a sequence of ga_n has pos, 0 if there is none
    uint32_t raised(uint32_t ga_n, int64_t pos) const;

    // Are the tokens of a ubatch computed together, with what comes behind them, so that it cannot be cut?
    bool is_whole() const;

    // Raise the groups of streams to what the first tokens of a ubatch need, or to what all need if it is whole. Returns how many of its
    // tokens they reach.
    uint32_t raise(std::vector<uint32_t> & streams, const llama_ubatch & ubatch) const;

    // The far keys of a sequence are rotated in a group size.
    void set_group_of_cells(llama_seq_id seq_id, uint32_t ga_n);

    // Split a batch as llama.cpp's caches do, and where a group is raised. Empty if it cannot be split this way.
    std::vector<llama_ubatch> split(llama_batch_allocr & balloc, uint32_t n_ubatch, bool simple) const;

    bool turn_far(llama_context * lctx, uint32_t strm);

    // are keys of a sequence lost?
    bool has_lost(llama_seq_id seq_id) const;

    // do all layers have keys that can be turned?
    bool can_turn() const;

    // Free up to n cells of the near part, from what a sequence no longer has in its window, oldest first and no more than
    // needed: what stays allows to go back without making anything again.
    void near_make_room(llama_seq_id seq_id, uint32_t n);

    // a (position, cell) of the far part
    using far_key = std::pair<llama_pos, uint32_t>;

    // what the near part lacks of the window of a token that follows the far positions below p1
    std::vector<far_key> near_missing(llama_seq_id seq_id, llama_pos p1) const;

    // do the layers with a window of their own hold that of a token that follows the far positions below p1? all that far holds?
    bool swa_has_window(llama_seq_id seq_id, llama_pos p1) const;
    bool swa_has_all() const;

    // the cells of a batch in the part of the layers with a window: those that it has in the far part, where that part is as large
    llama_kv_cache::slot_info_vec_t prepare_swa(
            const std::vector<llama_ubatch> & ubatches, const llama_kv_cache::slot_info_vec_t & sinfos_far) const;

    // the parts of a state by index, nullptr for those that are not in it
    enum : size_t { PART_FAR = 0, PART_SWA = 1, PART_NEAR = 2 };
    std::vector<llama_kv_cache *> get_parts(llama_state_seq_flags flags) const;

    // the header of a state of a sequence, -1 for all, without its sizes
    llama_self_extend_state get_state(llama_seq_id seq_id) const;

    // the group sizes that belong to it: of the sequence, or of each stream
    std::vector<uint32_t> get_groups(llama_seq_id seq_id) const;
    void check_groups(const llama_self_extend_state & state, const std::vector<uint32_t> & groups, llama_seq_id seq_id) const;
    void set_groups  (const std::vector<uint32_t> & groups, llama_seq_id seq_id);

    // does the far part hold anything of another sequence in the same stream?
    bool has_others(llama_seq_id seq_id) const;

    // the checks of a batch before anything is stored
    bool check_batch(const llama_batch & batch) const;
    bool check_windows(const llama_batch & batch);
};

//
// memory contexts
//

// What the contexts of this cache have in common, whichever of llama.cpp's they extend.
class llama_self_extend_mctx {
public:
    virtual ~llama_self_extend_mctx() = default;

    llama_kv_cache_self_extend * get_kv() const;

    virtual const llama_kv_cache_context * get_far () const = 0;
            const llama_kv_cache_context * get_near() const;

    // the cells of the current ubatch in the near part
    const llama_kv_cache::slot_info & get_slot_near() const;

protected:
    // near: for a full-cache context
    llama_self_extend_mctx(llama_kv_cache_self_extend * kv, llama_memory_context_ptr ctx_near = nullptr);

    // The cells of the near part are found when each ubatch is applied: what a later one has to push out of the window is
    // still needed by an earlier one.
    bool apply_near(const llama_ubatch & ubatch);

private:
    llama_kv_cache_self_extend * const kv;

    llama_memory_context_ptr  ctx_near; // of the current ubatch
    llama_kv_cache::slot_info slot_near;
};
