#include "attention/check/llama-self-extend-attn-check.h"

#include "attention/cpu/llama-self-extend-attn-cpu.h"
#include "attention/llama-self-extend-attn.h"

#include "llama-impl.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

namespace {

constexpr int64_t N_NEAR = 256; // cells
constexpr int64_t GA_W   = 100;

// backends choose other kernels for other sizes
struct size {
    int64_t n_tps; // tokens of a stream
    int64_t n_stream;
    int64_t n_far; // cells

    int64_t n_tokens() const { return n_tps*n_stream; }
};

// Of the root mean square of what the CPU computes. Devices sum in F16 here and there, and round queries to eight bits where
// keys are quantized: that makes a hundredth. A wrong cell or weight makes about as much as there is.
constexpr double MAX_ERROR = 0.05;

// the same problem, on one backend
struct problem {
    ggml_context_ptr        ctx { ggml_init({ 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }) };
    ggml_backend_buffer_ptr buffer;

    ggml_tensor * src[LLAMA_SELF_EXTEND_N_SRC];
    ggml_tensor * out = nullptr;

    problem(const llama_self_extend_attn_shape & shape, const size & sz) {
        const auto q = [&]() {
            return ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, shape.n_embd_k, shape.n_head, sz.n_tokens());
        };
        // as llama_kv_cache has them
        const auto cache = [&](ggml_type type, int64_t n_embd, int64_t n_cells) {
            return ggml_new_tensor_4d(ctx.get(), type, n_embd, shape.n_head_kv, n_cells, sz.n_stream);
        };

        src[LLAMA_SELF_EXTEND_SRC_Q_FAR ] = q();
        src[LLAMA_SELF_EXTEND_SRC_K_FAR ] = cache(shape.type_k, shape.n_embd_k, sz.n_far);
        src[LLAMA_SELF_EXTEND_SRC_V_FAR ] = cache(shape.type_v, shape.n_embd_v, sz.n_far);
        src[LLAMA_SELF_EXTEND_SRC_Q_NEAR] = q();
        src[LLAMA_SELF_EXTEND_SRC_K_NEAR] = cache(shape.type_k, shape.n_embd_k, N_NEAR);
        src[LLAMA_SELF_EXTEND_SRC_V_NEAR] = cache(shape.type_v, shape.n_embd_v, N_NEAR);
        src[LLAMA_SELF_EXTEND_SRC_MASK  ] = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, sz.n_far + N_NEAR, sz.n_tps, 1, sz.n_stream);
        src[LLAMA_SELF_EXTEND_SRC_AUX_0 ] = llama_self_extend_attn_new_bounds(ctx.get(), sz.n_tokens(), sz.n_stream);
        src[LLAMA_SELF_EXTEND_SRC_AUX_1 ] = nullptr;
        src[LLAMA_SELF_EXTEND_SRC_SINKS ] = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, shape.n_head);
    }

    // false if the backend has no memory for it, or does not compute it
    bool compute(ggml_backend_t backend, const std::vector<std::vector<char>> & data, std::vector<float> & result) {
        if (!out) {
            return false;
        }

        ggml_cgraph * gf = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(gf, out);

        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
        if (!buffer) {
            return false;
        }

        for (size_t i = 0; i < data.size(); ++i) {
            if (src[i]) {
                ggml_backend_tensor_set(src[i], data[i].data(), 0, ggml_nbytes(src[i]));
            }
        }
        if (ggml_backend_graph_compute(backend, gf) != GGML_STATUS_SUCCESS) {
            return false;
        }

        result.resize(ggml_nelements(out));
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));

        return true;
    }
};

// the last tokens that fit into the far part
std::vector<llama_self_extend_range> make_ranges(const size & sz) {
    std::vector<llama_self_extend_range> res(sz.n_tokens());

    for (int64_t i = 0; i < sz.n_tokens(); ++i) {
        const int64_t t = i % sz.n_tps;

        auto & range = res[i];

        range = {};

        range.far_end    = sz.n_far - sz.n_tps + t + 1;
        range.near_begin = t;
        range.near_end   = t + GA_W;
        range.far_dense  = 1;
        range.near_dense = 1;
    }

    return res;
}

// Numbers between -1.7 and 1.7: of variance 1, and drawn quickly, as there are millions.
class random_numbers {
public:
    float operator()() {
        state = state*6364136223846793005ull + 1442695040888963407ull;

        return 3.4f*(float(state >> 40)/float(1 << 24) - 0.5f);
    }

private:
    uint64_t state = 1;
};

template <typename T>
std::vector<char> bytes_of(const std::vector<T> & values) {
    return { (const char *) values.data(), (const char *) (values.data() + values.size()) };
}

// what the sources hold, by their places; the same for the same shape
std::vector<std::vector<char>> make_data(const problem & pr, const size & sz, const std::vector<llama_self_extend_range> & ranges) {
    random_numbers random;

    std::vector<std::vector<char>> res(LLAMA_SELF_EXTEND_N_SRC);

    for (int i = 0; i < LLAMA_SELF_EXTEND_N_SRC; ++i) {
        const ggml_tensor * t = pr.src[i];

        if (!t || i == LLAMA_SELF_EXTEND_SRC_MASK || i == LLAMA_SELF_EXTEND_SRC_AUX_0) {
            continue;
        }

        std::vector<float> values(ggml_nelements(t));
        std::generate(values.begin(), values.end(), [&]() { return random(); });

        res[i].resize(ggml_nbytes(t));
        ggml_get_type_traits_cpu(t->type)->from_float(values.data(), res[i].data(), values.size());
    }

    const int64_t n_mask = sz.n_far + N_NEAR;

    std::vector<ggml_fp16_t> mask(n_mask*ranges.size(), ggml_fp32_to_fp16(-INFINITY));
    for (size_t t = 0; t < ranges.size(); ++t) {
        auto row = mask.begin() + t*n_mask;

        std::fill(row, row + ranges[t].far_end, ggml_fp32_to_fp16(0.0f));
        std::fill(row + sz.n_far + ranges[t].near_begin, row + sz.n_far + ranges[t].near_end, ggml_fp32_to_fp16(0.0f));
    }
    res[LLAMA_SELF_EXTEND_SRC_MASK] = bytes_of(mask);

    res[LLAMA_SELF_EXTEND_SRC_AUX_0] = bytes_of(llama_self_extend_attn_bounds(ranges, sz.n_stream));

    return res;
}

// nothing if the device does not get to a result: it may the next time
std::optional<bool> check(ggml_backend_dev_t dev, const llama_self_extend_attn_shape & shape, const size & sz) {
    const auto ranges = make_ranges(sz);

    problem on_cpu   (shape, sz);
    problem on_device(shape, sz);

    const auto  data  = make_data(on_cpu, sz, ranges);
    const float scale = 1.0f/std::sqrt(float(shape.n_embd_k));

    llama_self_extend_attn_params params;
    params.ranges = ranges.data();

    on_cpu.src[LLAMA_SELF_EXTEND_SRC_AUX_0] = nullptr; // they are in params

    on_cpu   .out = llama_self_extend_attn_build       (on_cpu   .ctx.get(),      on_cpu   .src, scale, shape.logit_softcap, &params);
    on_device.out = llama_self_extend_attn_build_device(on_device.ctx.get(), dev, on_device.src, scale, shape.logit_softcap);

    const ggml_backend_ptr cpu    { ggml_backend_cpu_init() };
    const ggml_backend_ptr device { ggml_backend_dev_init(dev, nullptr) };

    std::vector<float> expected;
    std::vector<float> result;

    if (!cpu || !device || !on_cpu.compute(cpu.get(), data, expected) || !on_device.compute(device.get(), data, result)) {
        return std::nullopt;
    }

    double sum_err = 0.0;
    double sum     = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
        sum_err += std::pow(double(result[i]) - expected[i], 2);
        sum     += std::pow(double(expected[i]), 2);
    }

    const double error = std::sqrt(sum_err/sum);

    if (!(error <= MAX_ERROR)) { // also if it is not a number
        LLAMA_LOG_WARN("self_extend: device '%s' computes the fused attention wrongly (%d tokens, %d streams, %d cells, heads of %d, %d by %d, "
                "%s/%s: the error is %.3g of the result)\n", ggml_backend_dev_name(dev), int(sz.n_tps), int(sz.n_stream), int(sz.n_far),
                int(shape.n_embd_k), int(shape.n_head), int(shape.n_head_kv), ggml_type_name(shape.type_k), ggml_type_name(shape.type_v), error);
        return false;
    }

    return true;
}

std::optional<bool> check_all(ggml_backend_dev_t dev, const llama_self_extend_attn_shape & shape) {
    // one token, two, a prompt, streams; and many query heads to a KV head have another kernel for one token from some length on
    std::vector<size> sizes = { { 1, 1, 512 }, { 2, 1, 512 }, { 96, 1, 2048 }, { 3, 2, 512 } };
    if (shape.n_head > 4*shape.n_head_kv) {
        sizes.push_back({ 1, 1, 8192 });
    }

    for (const auto & sz : sizes) {
        const auto res = check(dev, shape, sz);
        if (!res || !*res) {
            return res;
        }
    }

    return true;
}

} // namespace

bool llama_self_extend_attn_check(ggml_backend_dev_t dev, const llama_self_extend_attn_shape & shape) {
    static std::mutex mutex;
    static std::map<std::tuple<ggml_backend_dev_t, int64_t, int64_t, int64_t, int64_t, int, int, float>, bool> answers;

    const std::lock_guard<std::mutex> guard(mutex);

    const auto key = std::make_tuple(dev, shape.n_embd_k, shape.n_embd_v, shape.n_head, shape.n_head_kv,
            int(shape.type_k), int(shape.type_v), shape.logit_softcap);

    if (const auto it = answers.find(key); it != answers.end()) {
        return it->second;
    }

    std::optional<bool> res;
    try {
        res = check_all(dev, shape);
    } catch (const std::exception & e) { // of Vulkan
        LLAMA_LOG_WARN("self_extend: %s\n", e.what());
    }

    if (res) {
        answers.emplace(key, *res);
    }
    if (!res || !*res) {
        LLAMA_LOG_WARN("self_extend: device '%s' %s the fused attention; it is composed of stock operators there\n",
                ggml_backend_dev_name(dev), res ? "miscomputes" : "could not compute");
    }

    return res && *res;
}
