#pragma once

// CUDA on the host, for tests: as much of it as ggml's attention kernels and ours use. Found before the toolkit's headers, which
// are not needed. The blocks of a grid run one after another, the threads of a block in turns (cuda-host.cpp).

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <type_traits>

#define CUDART_VERSION 11070 // without programmatic launches and 8-bit floats

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static // of all threads, and there is one block at a time
#define __builtin_assume(x) ((void) 0)

//
// vectors
//

#define CUDA_HOST_VECTOR(type, scalar)                                                                        \
    struct alignas(2*sizeof(scalar)) type##2 { scalar x, y; };                                                \
    struct type##3 { scalar x, y, z; };                                                                       \
    struct alignas(4*sizeof(scalar)) type##4 { scalar x, y, z, w; };                                          \
    inline type##2 make_##type##2(scalar x, scalar y) { return { x, y }; }                                    \
    inline type##3 make_##type##3(scalar x, scalar y, scalar z) { return { x, y, z }; }                       \
    inline type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { return { x, y, z, w }; }

CUDA_HOST_VECTOR(char,  int8_t)
CUDA_HOST_VECTOR(int,   int32_t)
CUDA_HOST_VECTOR(uint,  uint32_t)
CUDA_HOST_VECTOR(float, float)

struct dim3 {
    uint32_t x, y, z;

    dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

//
// threads
//

extern dim3 gridDim;
extern dim3 blockDim;
extern dim3 blockIdx;
extern dim3 threadIdx;

// what all threads of a block, or of a warp, arrive at before any of them goes on
void __syncthreads();

// Each lane of a warp leaves a value. Returns the values of all lanes, until the lane comes here again; op: all lanes must be at the same.
const uint64_t * cuda_host_exchange(int op, uint64_t value);

int cuda_host_lane();

inline void __syncwarp(uint32_t = 0xffffffff) {
    cuda_host_exchange(1, 0);
}

template <typename T>
T cuda_host_shuffle(int op, T value, int from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "too large");

    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    memcpy(&value, &cuda_host_exchange(op, bits)[from], sizeof(T));

    return value;
}

template <typename T>
T __shfl_xor_sync(uint32_t, T value, int mask, int width = 32) {
    const int lane = cuda_host_lane();
    const int from = lane ^ mask;
    return cuda_host_shuffle(2, value, from/width <= lane/width ? from : lane);
}

template <typename T>
T __shfl_up_sync(uint32_t, T value, int delta, int width = 32) {
    const int lane = cuda_host_lane();
    return cuda_host_shuffle(3, value, lane % width >= delta ? lane - delta : lane);
}

template <typename T>
T __shfl_sync(uint32_t, T value, int from, int width = 32) {
    return cuda_host_shuffle(4, value, cuda_host_lane()/width*width + from % width);
}

inline uint32_t __ballot_sync(uint32_t, int predicate) {
    const uint64_t * values = cuda_host_exchange(5, predicate != 0);

    uint32_t res = 0;
    for (int i = 0; i < 32; ++i) {
        res |= uint32_t(values[i]) << i;
    }
    return res;
}

inline int __all_sync(uint32_t mask, int predicate) {
    return __ballot_sync(mask, predicate) == 0xffffffff;
}

inline int __any_sync(uint32_t mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}

inline int __reduce_add_sync(uint32_t, int value) {
    const uint64_t * values = cuda_host_exchange(6, uint32_t(value));

    uint32_t res = 0;
    for (int i = 0; i < 32; ++i) {
        res += uint32_t(values[i]);
    }
    return int(res);
}

//
// launches
//

// extern __shared__ T x[] is written as a pointer to this
constexpr size_t CUDA_HOST_N_BYTES_SHARED = 256*1024;
extern char cuda_host_dynamic_shared[];

void cuda_host_run(dim3 grid, dim3 block, size_t n_bytes_shared, size_t n_args, const std::function<void()> & thread);

// kernel<<<grid, block, n_bytes_shared, stream>>>(args...) is written as cuda_host_launch(grid, ..., kernel)(args...)
template <typename Kernel>
auto cuda_host_launch(dim3 grid, dim3 block, size_t n_bytes_shared, const void *, Kernel kernel) {
    return [=](auto... args) {
        cuda_host_run(grid, block, n_bytes_shared, sizeof...(args), [&] { kernel(args...); });
    };
}

//
// intrinsics
//

using std::isfinite;
using std::isinf;
using std::max;
using std::min;

template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) { return a > b ? a : b; }

template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) { return a < b ? a : b; }

inline uint32_t __umulhi(uint32_t a, uint32_t b) {
    return uint64_t(a)*b >> 32;
}

inline int __popc(uint32_t a) {
    return __builtin_popcount(a);
}

[[noreturn]] inline void __trap() {
    abort();
}

template <typename Op>
int cuda_host_bytes(int a, int b, Op op) {
    uint32_t res = 0;
    for (int i = 0; i < 32; i += 8) {
        res |= uint32_t(uint8_t(op(int8_t(a >> i), int8_t(b >> i)))) << i;
    }
    return int(res);
}

inline int __vsub4  (int a, int b) { return cuda_host_bytes(a, b, [](int x, int y) { return x - y; }); }
inline int __vcmpne4(int a, int b) { return cuda_host_bytes(a, b, [](int x, int y) { return x != y ? 255 : 0; }); }

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) {
        c += int8_t(a >> i)*int8_t(b >> i);
    }
    return c;
}

inline int __byte_perm(uint32_t a, uint32_t b, uint32_t s) {
    const uint64_t both = uint64_t(b) << 32 | a;

    uint32_t res = 0;
    for (int i = 0; i < 4; ++i) {
        res |= uint32_t(both >> 8*(s >> 4*i & 7) & 0xff) << 8*i;
    }
    return int(res);
}

//
// the runtime: one device
//

enum cudaError_t { cudaSuccess };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaStreamNonBlocking, cudaEventDisableTiming };

typedef struct cudaStream * cudaStream_t;
typedef struct cudaEvent  * cudaEvent_t;

inline const char * cudaGetErrorString(cudaError_t) { return ""; }

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *, int) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *, int) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaMalloc(void **, size_t) { abort(); }

template <typename Function>
cudaError_t cudaFuncSetAttribute(Function, int, size_t) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int * res, const void * function, int n_threads, size_t n_bytes_shared);

template <typename Function>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int * res, Function * function, int n_threads, size_t n_bytes_shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(res, (const void *) function, n_threads, n_bytes_shared);
}

//
// PTX: asm("instruction ..." : "=r"(a), ... : "r"(b), ...) is written as cuda_host_ptx("instruction ...", a, ..., b, ...)
//

void cuda_host_ptx_run(const char * text, void * const * regs);

template <typename... Regs>
void cuda_host_ptx(const char * text, Regs &&... regs) {
    void * const list[] = { (void *) &regs..., nullptr };
    cuda_host_ptx_run(text, list);
}

inline uint32_t __cvta_generic_to_shared(const void * p) {
    return (const char *) p - cuda_host_dynamic_shared;
}
