#pragma once

#include "llama-io.h"

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

//
// saved states: what tells one from another, and whether it is whole
//

// A hash of 64 bits, of bytes in any portions. Changes if any of up to 8 adjacent bytes change; not against forgery.
class llama_self_extend_hash {
public:
    void update(const void * data, size_t size);
    void update(const std::string & str);

    uint64_t value() const;

private:
    static constexpr size_t N_LANES = 4; // side by side, for speed

    uint64_t lanes[N_LANES] = { 1, 2, 3, 4 };
    uint64_t n_bytes        = 0;

    uint8_t block[N_LANES*sizeof(uint64_t)] = {}; // what does not fill one yet

    void mix(const uint8_t * data);
};

// The header of a state, which group sizes follow. Parts: far, the layers with a window of their own, near.
struct llama_self_extend_state {
    static constexpr uint32_t MAGIC   = 0x45584553; // "SEXE"
    static constexpr uint32_t VERSION = 4;
    static constexpr int      N_PARTS = 3;

    uint32_t magic   = MAGIC;
    uint32_t version = VERSION;

    uint32_t ga_n; // that the context began with
    uint32_t ga_w;

    uint64_t model; // fingerprint of the model and of its RoPE

    uint32_t type_k;
    uint32_t type_v;
    uint32_t v_trans;
    uint32_t n_stream;

    uint32_t n_seq; // one more than the highest sequence of a state of all

    uint32_t n_cells [N_PARTS];      // of the stream with the most
    uint32_t has_part[N_PARTS] = {}; // 0 or 1

    uint32_t n_groups = 0;
    uint32_t ga_n_max; // of the context

    uint32_t map; // llama_self_extend_map_type

    uint64_t n_bytes[N_PARTS] = {}; // 0: not in the stream, or kept on the device
    uint64_t hash             = 0;  // of all before this, and of the group sizes

    uint64_t compute_hash(const std::vector<uint32_t> & groups) const;
};

// Fingerprint of a model: its metadata, the names, types and shapes of its tensors, and samples of those that no backend packs
// in a way of its own: it is the same on all devices.
uint64_t llama_self_extend_fingerprint(const llama_model & model);

// counts bytes
class llama_self_extend_io_count : public llama_io_write_i {
public:
    void write(const void * src, size_t size) override;
    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override;

    size_t n_bytes() override;

private:
    size_t n = 0;
};

// hands bytes on, and hashes them
class llama_self_extend_io_hash : public llama_io_write_i {
public:
    llama_self_extend_io_hash(llama_io_write_i & io);

    void write(const void * src, size_t size) override;
    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override;

    size_t n_bytes() override;

    uint64_t value() const;

private:
    llama_io_write_i & io;

    llama_self_extend_hash hash;
};

// The parts of a state, read whole and checked before anything is done with them.
class llama_self_extend_io_parts : public llama_io_read_i {
public:
    // throws if the stream is too short or the bytes are not those that were written
    llama_self_extend_io_parts(llama_io_read_i & io, const llama_self_extend_state & state);

    void read(void * dst, size_t size) override;
    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override;

    size_t n_bytes() override;

private:
    size_t size = 0;
    size_t pos  = 0;

    std::unique_ptr<uint8_t[]> data;

    const uint8_t * take(size_t n);
};

// Read size bytes; throws a sentence about a truncated state if they are not there.
void llama_self_extend_state_read(llama_io_read_i & io, void * dst, size_t size);
