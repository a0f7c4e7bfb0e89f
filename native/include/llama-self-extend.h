#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stdint.h>

//
// SelfExtend for llama.cpp: longer contexts at inference time, without tuning
//
//   Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", arXiv 2401.01325
//
// A query at position q sees a key at position k <= q at the relative position
//
//   q - k                                           if q - k <  ga_w   (near)
//   (q / ga_n + ga_w - ga_w / ga_n) - k / ga_n      if q - k >= ga_w   (far)
//
// with one softmax over both. Every division is an integer division. Other maps show far keys at other relative positions.
//
// ref: native/README.md
//

#ifdef __cplusplus
extern "C" {
#endif

    // how the attention over the two parts is computed; the result is the same up to rounding
    enum llama_self_extend_attn {
        LLAMA_SELF_EXTEND_ATTN_AUTO     = 0, // fused for layers whose cache lies where that can be done, composed for the others
        LLAMA_SELF_EXTEND_ATTN_FUSED    = 1, // one kernel over both parts; refused if a layer's cache lies where there is none
        LLAMA_SELF_EXTEND_ATTN_COMPOSED = 2, // stock ggml operators, on any backend
    };

    // the relative position at which a far key is seen; near ones are exact in all maps, and ga_n = 1 is the plain model
    // ref: docs/maps.md
    enum llama_self_extend_map_type {
        LLAMA_SELF_EXTEND_MAP_SELF_EXTEND = 0, // (q / ga_n + ga_w - ga_w / ga_n) - k / ga_n
        LLAMA_SELF_EXTEND_MAP_JET_LONG    = 1, // q / ga_n - k / ga_n                   (Jet-Long, arXiv 2607.07740)
        LLAMA_SELF_EXTEND_MAP_REROPE      = 2, // ga_w, for every ga_n > 1              (ReRoPE, kexue.fm/archives/9708)
        LLAMA_SELF_EXTEND_MAP_LEAKY       = 3, // ga_w + (q - k - ga_w)/ga_n, a real number; ga_n is a power of two (Leaky ReRoPE, the same)
        LLAMA_SELF_EXTEND_MAP_LAMPE       = 4, // that of SELF_EXTEND with ga_n in 64ths: 64 is the plain model (LaMPE, arXiv 2508.02308)
        LLAMA_SELF_EXTEND_MAP_MRROPE      = 5, // q - k at frequencies for a context ga_n times as long, for all keys: ga_w is 0, and ga_n stays
                                               // as it is (MrRoPE-Pro, arXiv 2601.22181)
    };

    // ga_n of the map LAMPE that is the plain model
    #define LLAMA_SELF_EXTEND_LAMPE_UNIT 64

    struct llama_self_extend_params {
        uint32_t ga_n;     // group size that a sequence begins with, >= 1
        uint32_t ga_n_max; // that to which it is raised where it no longer reaches; 0: ga_n, it stays as it is
        uint32_t ga_w;     // neighbour window in tokens, below the trained context

        // ga_n = 1 with ga_n_max <= 1 is the plain model, for which nothing is built

        enum llama_self_extend_attn     attn;
        enum llama_self_extend_map_type map;
    };

    // ga_w that stands for "take the default": an eighth of the trained context, at most 2048; 0 with the map MRROPE
    #define LLAMA_SELF_EXTEND_GA_W_DEFAULT UINT32_MAX

    // ga_n_max that stands for the group size of a text that fills the context
    #define LLAMA_SELF_EXTEND_GA_N_MAX_AUTO UINT32_MAX

    // the group size that texts of up to n_tokens tokens are read with
    struct llama_self_extend_step {
        int64_t  n_tokens;
        uint32_t ga_n;
    };

    struct llama_self_extend_info {
        uint32_t ga_n;
        uint32_t ga_n_max;
        uint32_t ga_w;
        uint32_t n_ctx_train;      // the model's trained context, in tokens
        uint32_t n_layer_fused;    // layers on each way of computing the attention
        uint32_t n_layer_composed;
        uint64_t n_ctx_reach;      // the longest sequence whose relative positions all stay below n_ctx_train with ga_n_max, in tokens
        uint64_t n_bytes_far;      // memory of each part of the cache
        uint64_t n_bytes_near;

        enum llama_self_extend_map_type map;
    };

    // { ga_n = 1, ga_n_max = 0, ga_w = LLAMA_SELF_EXTEND_GA_W_DEFAULT, attn = AUTO, map = SELF_EXTEND }
    LLAMA_API struct llama_self_extend_params llama_self_extend_default_params(void);

    // Set the parameters of the next context that the calling thread creates with llama_init_from_model().
    // They are consumed by that call, whether it succeeds or not: a later context is plain again.
    // That call returns NULL if the model, the context parameters and these do not go together.
    //
    // Returns false, and changes nothing, if the parameters are invalid for every model.
    // In both cases llama_self_extend_last_error() says why.
    LLAMA_API bool llama_self_extend_set_next(struct llama_self_extend_params params);

    // Set the parameters of the contexts that the process creates with llama_self_extend_init_from_model(): for programs in which somebody
    // else decides when that is, such as llama.cpp's server. NULL: plain ones, as at first.
    // steps [n_steps]: group sizes that were measured on the model, of ascending lengths; llama_self_extend_follow() takes them before its rule
    //
    // Returns false, and changes nothing, if they are invalid for every model. llama_self_extend_last_error() says why.
    LLAMA_API bool llama_self_extend_set_default(
            const struct llama_self_extend_params * params,
            const struct llama_self_extend_step   * steps,
                                          int32_t   n_steps);

    // Like llama_init_from_model(), with these parameters. If they leave the group size to the length of the text (ga_n = 1, ga_n_max =
    // LLAMA_SELF_EXTEND_GA_N_MAX_AUTO), the context is a plain one where no sequence is longer than the trained context, and, with a warning,
    // where the caller scales positions or the model cannot be extended. llama_self_extend_last_error() then says why.
    LLAMA_API struct llama_context * llama_self_extend_init_from_model(struct llama_model * model, struct llama_context_params params);

    // Why the last llama_self_extend_set_next(), _set_default(), _set_group() or llama_init_from_model() of the calling thread failed.
    // Empty if the last one succeeded or if it failed for a reason that has nothing to do with SelfExtend.
    // The string is valid until the thread's next such call.
    LLAMA_API const char * llama_self_extend_last_error(void);

    // From begin to end, an assertion of llama.cpp or ggml that fails in the calling thread is an exception instead of the end of the
    // process. llama_model_load_from_file(), llama_init_from_model(), llama_adapter_lora_init() and the functions that load a state or a
    // session file catch it and fail; no other call of llama.cpp that may fail belongs in between. They can be nested.
    // The end returns the errors that were logged in the thread since the outermost begin, each on a line; valid until the next begin.
    LLAMA_API void         llama_self_extend_guard_begin(void);
    LLAMA_API const char * llama_self_extend_guard_end  (void);

    // Fill in what is in force in a context. Returns false if the context is plain; *info is then set to zero.
    LLAMA_API bool llama_self_extend_get_info(const struct llama_context * ctx, struct llama_self_extend_info * info);

    //
    // the group size of a sequence
    //
    // Each sequence begins with the ga_n of its context. A batch that goes beyond the reach raises it, up to ga_n_max: to the next power
    // of two at the first token that it does not reach, wherever that is in the batch; for the whole ubatch where its tokens are computed
    // together (pooled embeddings, attention that is not causal). It can be set at any time. Tokens that are evaluated see all keys in the
    // groups of the moment: the far keys that are cached are turned, and nothing is evaluated again. What was computed of earlier tokens
    // stays as it was.
    //
    // Sequences that share a buffer (kv_unified) have one group size. A copy of a sequence has that of its source, a state brings its
    // own. A buffer of which the last token is removed begins anew, also where llama_decode() removes what it could not compute. A group
    // that was raised for a batch that then failed stays. Keys that were being turned when that was aborted are lost: batches of their
    // sequence are refused until they are removed.
    //

    // Returns 0 if the context is plain, or has no such sequence.
    LLAMA_API uint32_t llama_self_extend_get_group(const struct llama_context * ctx, llama_seq_id seq_id);

    // The keys are turned before the next batch, or by llama_self_extend_apply_shifts(), and may be turned back; each time rounds them
    // once more to the type of the cache.
    // Returns false, and changes nothing, if the context is plain or has no such sequence, if the map has no such group or does not
    // change it, if ga_n does not reach the tokens of the sequence, or if it has any and its keys cannot be turned.
    // llama_self_extend_last_error() says why.
    LLAMA_API bool llama_self_extend_set_group(struct llama_context * ctx, llama_seq_id seq_id, uint32_t ga_n);

    // Choose the group size of a text of n_tokens tokens, its answer included, of which the first n_kept are cached; the others are removed
    // from the cache. A text that is read with one group size from its beginning retrieves better than one whose group size is raised on
    // the way. It is that of llama_self_extend_ga_n_auto(), or of the steps that were given; what is kept keeps its own as long as that is
    // no smaller, unless no more is kept than fits into the window.
    // Does nothing if the group size is not left to the length of the text.
    //
    // Returns how many tokens are kept: n_kept, or 0 where they have to be evaluated again.
    LLAMA_API int32_t llama_self_extend_follow(struct llama_context * ctx, llama_seq_id seq_id, int32_t n_kept, int64_t n_tokens);

    struct llama_self_extend_layer {
        enum llama_self_extend_attn attn;   // FUSED or COMPOSED
        const char *                device; // ggml's name of the device that computes it, e.g. "CPU" or "CUDA0"
    };

    // Fill in how a layer's attention is computed. Returns false, and sets *layer to zero, if it is not extended:
    // all layers of a plain context, and those with a window of their own.
    LLAMA_API bool llama_self_extend_get_layer(const struct llama_context * ctx, int32_t il, struct llama_self_extend_layer * layer);

    // memory on a device, in bytes
    struct llama_self_extend_memory {
        const char * device; // ggml's name; main memory is "CPU", whoever it was allocated for
        uint64_t n_bytes_model;
        uint64_t n_bytes_cache;
        uint64_t n_bytes_compute;
    };

    // Fill in the first n_max devices that a context, also a plain one, has memory on. Returns how many there are.
    LLAMA_API int32_t llama_self_extend_get_memory(const struct llama_context * ctx, struct llama_self_extend_memory * memory, int32_t n_max);

    // Why llama.cpp's own shift (llama_memory_seq_add) of a plain context would end the process, or leave keys that are not those of
    // their new positions. Empty if it is exact, and for an extended context, whose shift is ours: llama_memory_can_shift() tells.
    LLAMA_API const char * llama_self_extend_plain_shift_fault(const struct llama_context * ctx);

    // Do now what llama_memory_seq_add() and llama_self_extend_set_group() have left for the next llama_decode(): turn the keys of a
    // context, also a plain one.
    // llama.cpp saves a state with the positions that the keys are to have, and the keys as they are.
    LLAMA_API void llama_self_extend_apply_shifts(struct llama_context * ctx);

    // Does a device offer the fused attention, of the shapes that it supports? By ggml's name of the device;
    // NULL: does any for whose sake flash attention should be on? The CPU fuses without
    LLAMA_API bool llama_self_extend_device_is_fused(const char * device);

    // What this library was built from, as a JSON object of strings:
    //   version, build_id, llama_cpp_python, llama_cpp_sha256, llama_cpp_commit, patches, patches_sha256
    // build_id is a hash of the pinned source, the patch series and our own sources.
    // patches are the names of the series in order, separated by spaces; patches_sha256 is a hash of names and contents.
    LLAMA_API const char * llama_self_extend_build_info(void);

    // The instructions that fused attention uses on this processor: "avx512", "avx2", "neon", or "portable" for none in particular.
    LLAMA_API const char * llama_self_extend_kernel_isa(void);

    //
    // grammars
    //

    // A sampler like that of llama_sampler_init_grammar(). A grammar that cannot be used gives NULL. Where llama.cpp's ends the process, as
    // when no token continues the text, this one takes part no longer: any token may be sampled then, and it is not to be used.
    // In both cases llama_self_extend_grammar_error() says why.
    LLAMA_API struct llama_sampler * llama_self_extend_sampler_init_grammar(
            const struct llama_vocab * vocab,
                          const char * grammar,
                          const char * root);

    // Whether llama.cpp's own sampler survives a grammar. If not, llama_self_extend_grammar_error() says why.
    LLAMA_API bool llama_self_extend_grammar_check(const struct llama_vocab * vocab, const char * grammar, const char * root);

    // What has gone wrong with a grammar in the calling thread since the last call; empty: nothing.
    // *offset is the place in the grammar's text, in bytes, or -1. The string is valid until the thread's next call.
    LLAMA_API const char * llama_self_extend_grammar_error(int64_t * offset);

    //
    // positions: pure arithmetic, the same in pyselfextend.positions
    //
    // ga_n is a group size of the map, positions are >= 0
    //

    // The frame in which a far query or a far key is rotated, in units of 1/pos_den positions; their difference is the far relative
    // position.
    LLAMA_API int64_t llama_self_extend_pos_q(int64_t pos, uint32_t ga_n, uint32_t ga_w, enum llama_self_extend_map_type map);
    LLAMA_API int64_t llama_self_extend_pos_k(int64_t pos, uint32_t ga_n,                enum llama_self_extend_map_type map);

    // In how many parts a position is counted: 1, and ga_n with the maps LEAKY and MRROPE.
    LLAMA_API uint32_t llama_self_extend_pos_den(uint32_t ga_n, enum llama_self_extend_map_type map);

    // The relative position at which a query at pos_q sees a key at pos_k <= pos_q, in units of 1/pos_den.
    LLAMA_API int64_t llama_self_extend_pos_rel(
            int64_t pos_q, int64_t pos_k, uint32_t ga_n, uint32_t ga_w, enum llama_self_extend_map_type map);

    // The largest relative position among n_tokens tokens, n_tokens >= 1, in units of 1/pos_den.
    LLAMA_API int64_t llama_self_extend_pos_rel_max(int64_t n_tokens, uint32_t ga_n, uint32_t ga_w, enum llama_self_extend_map_type map);

    // The longest sequence, in tokens, whose relative positions all stay below n_ctx_train > ga_w.
    LLAMA_API int64_t llama_self_extend_n_ctx_reach(
            uint32_t n_ctx_train, uint32_t ga_n, uint32_t ga_w, enum llama_self_extend_map_type map);

    // The group size of a sequence that had ga_n and has grown to n_tokens: the same while that reaches, else the smallest power of two
    // above it that does, and no more than ga_n_max. Returns 0 if ga_n_max does not reach, or if ga_w >= n_ctx_train.
    LLAMA_API uint32_t llama_self_extend_ga_n_raised(
            uint32_t n_ctx_train, uint32_t ga_n, uint32_t ga_n_max, uint32_t ga_w, int64_t n_tokens, enum llama_self_extend_map_type map);

    // The smallest group size whose reach is at least n_tokens. Returns 0 if there is none, as when ga_w >= n_ctx_train.
    LLAMA_API uint32_t llama_self_extend_ga_n_min(
            uint32_t n_ctx_train, uint32_t ga_w, int64_t n_tokens, enum llama_self_extend_map_type map);

    // The group size of a text of n_tokens tokens by the authors' rule (README of LongLM): the plain model's up to n_ctx_train, beyond it
    // the smallest that keeps relative positions within two thirds of n_ctx_train, as a power of two with the map SELF_EXTEND. Where the
    // window alone takes as much, and with maps whose authors do so, the smallest that reaches.
    // Returns 0 if there is none, as when ga_w >= n_ctx_train.
    LLAMA_API uint32_t llama_self_extend_ga_n_auto(
            uint32_t n_ctx_train, uint32_t ga_w, int64_t n_tokens, enum llama_self_extend_map_type map);

#ifdef __cplusplus
}
#endif
