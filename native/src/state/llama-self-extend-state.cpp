#include "state/llama-self-extend-state.h"

#include "params/llama-self-extend-params.h"

#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>
#include <vector>

//
// hash
//

static uint64_t mix_word(uint64_t h, uint64_t word) {
    // each step can be undone, so a changed word changes the result
    h = (h ^ word)*0x9e3779b97f4a7c15ull;
    return h ^ (h >> 29);
}

void llama_self_extend_hash::mix(const uint8_t * data) {
    for (size_t i = 0; i < N_LANES; ++i) {
        uint64_t word;
        memcpy(&word, data + i*sizeof(word), sizeof(word));
        lanes[i] = mix_word(lanes[i], word);
    }
}

void llama_self_extend_hash::update(const void * src, size_t size) {
    const auto * data = static_cast<const uint8_t *>(src);

    while (size > 0) {
        const size_t used = n_bytes % sizeof(block);
        const size_t n    = std::min(size, sizeof(block) - used);

        if (n == sizeof(block)) {
            mix(data);
        } else {
            memcpy(block + used, data, n);
            if (used + n == sizeof(block)) {
                mix(block);
            }
        }

        data    += n;
        size    -= n;
        n_bytes += n;
    }
}

void llama_self_extend_hash::update(const std::string & str) {
    const uint64_t n = str.size();

    update(&n, sizeof(n));
    update(str.data(), str.size());
}

uint64_t llama_self_extend_hash::value() const {
    llama_self_extend_hash last = *this;

    memset(last.block + n_bytes % sizeof(block), 0, sizeof(block) - n_bytes % sizeof(block));
    last.mix(last.block);

    uint64_t res = n_bytes;
    for (uint64_t lane : last.lanes) {
        res = mix_word(res, lane);
    }
    return res;
}

uint64_t llama_self_extend_state::compute_hash(const std::vector<uint32_t> & groups) const {
    llama_self_extend_hash res;
    res.update(this, offsetof(llama_self_extend_state, hash));
    res.update(groups.data(), groups.size()*sizeof(groups[0]));
    return res.value();
}

//
// fingerprint
//

// backends pack quantized matrices for their products
static bool is_never_packed(const ggml_tensor * t) {
    return t->buffer && t->data && !ggml_is_quantized(t->type);
}

uint64_t llama_self_extend_fingerprint(const llama_model & model) {
    llama_self_extend_hash res;

    // in whatever order they are kept
    const std::map<std::string, std::string>         meta   (model.gguf_kv.begin(), model.gguf_kv.end());
    const std::map<std::string, const ggml_tensor *> tensors(model.tensors_by_name.begin(), model.tensors_by_name.end());

    for (const auto & [key, value] : meta) {
        res.update(key);
        res.update(value);
    }

    for (const auto & [name, t] : tensors) {
        res.update(name);
        res.update(&t->type, sizeof(t->type));
        res.update(t->ne,    sizeof(t->ne));

        if (is_never_packed(t)) {
            uint8_t sample[256];
            const size_t n = std::min(sizeof(sample), ggml_nbytes(t));

            ggml_backend_tensor_get(t, sample, (ggml_nbytes(t) - n)/2, n);
            res.update(sample, n);
        }
    }

    return res.value();
}

//
// writing
//

void llama_self_extend_io_count::write(const void * src, size_t size) {
    GGML_UNUSED(src);

    n += size;
}

void llama_self_extend_io_count::write_tensor(ggml_tensor * tensor, size_t offset, size_t size) {
    GGML_UNUSED(tensor);
    GGML_UNUSED(offset);

    n += size;
}

size_t llama_self_extend_io_count::n_bytes() {
    return n;
}

llama_self_extend_io_hash::llama_self_extend_io_hash(llama_io_write_i & io) : io(io) {}

void llama_self_extend_io_hash::write(const void * src, size_t size) {
    hash.update(src, size);
    io.write(src, size);
}

void llama_self_extend_io_hash::write_tensor(ggml_tensor * tensor, size_t offset, size_t size) {
    if (ggml_backend_buffer_is_host(tensor->buffer)) {
        write(static_cast<const uint8_t *>(tensor->data) + offset, size);
        return;
    }

    std::vector<uint8_t> data(size);
    ggml_backend_tensor_get(tensor, data.data(), offset, size);
    write(data.data(), size);
}

size_t llama_self_extend_io_hash::n_bytes() {
    return io.n_bytes();
}

uint64_t llama_self_extend_io_hash::value() const {
    return hash.value();
}

//
// reading
//

void llama_self_extend_state_read(llama_io_read_i & io, void * dst, size_t size) {
    try {
        io.read(dst, size);
    } catch (const std::exception &) {
        llama_self_extend_refuse("the state is truncated");
    }
}

llama_self_extend_io_parts::llama_self_extend_io_parts(llama_io_read_i & io, const llama_self_extend_state & state) {
    for (uint64_t n : state.n_bytes) {
        size += n;
    }

    data.reset(new uint8_t[size]);

    // in portions: a truncated state does not touch all of the memory
    constexpr size_t n_portion = 64*1024*1024;

    llama_self_extend_hash hash;
    for (size_t i = 0; i < size; i += n_portion) {
        const size_t n = std::min(n_portion, size - i);

        llama_self_extend_state_read(io, data.get() + i, n);
        hash.update(data.get() + i, n);
    }

    uint64_t expected;
    llama_self_extend_state_read(io, &expected, sizeof(expected));

    if (expected != hash.value()) {
        llama_self_extend_refuse("the state is damaged: its bytes are not those that were saved");
    }
}

const uint8_t * llama_self_extend_io_parts::take(size_t n) {
    if (n > size - pos) {
        throw std::runtime_error("unexpectedly reached the end of the state");
    }

    pos += n;

    return data.get() + pos - n;
}

void llama_self_extend_io_parts::read(void * dst, size_t n) {
    memcpy(dst, take(n), n);
}

void llama_self_extend_io_parts::read_tensor(ggml_tensor * tensor, size_t offset, size_t n) {
    ggml_backend_tensor_set(tensor, take(n), offset, n);
}

size_t llama_self_extend_io_parts::n_bytes() {
    return pos;
}
