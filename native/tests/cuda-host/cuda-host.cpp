// threads, blocks and a device

#include "cuda-host.h"

#include "common.cuh"

#include "attention/cuda/llama-self-extend-attn-cuda.h"

#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <memory>
#include <vector>

//
// Threads are fibers on stacks of their own. One runs until it waits, then the next of the block does, around and around. Their
// contexts are made once; from then on they are switched with setjmp, which takes no system call.
//
// The last lane of a warp is the first to run: with heads of 64 ggml's quantize_q8_1_to_shared() stores with lanes that have nothing
// to store where lanes before them store afterwards, which is right only if all lanes of a warp do one step after the other. Warps
// run in either order, so that a barrier that is missing between them shows.
//

dim3 gridDim;
dim3 blockDim;
dim3 blockIdx;
dim3 threadIdx;

alignas(128) char cuda_host_dynamic_shared[CUDA_HOST_N_BYTES_SHARED];

[[noreturn]] static void broken(const char * what) {
    fprintf(stderr, "cuda-host: %s: block %u %u %u, thread %u %u\n", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y);
    abort();
}

// memory that was 0xff and must be
static void check_guard(const char * begin, size_t n_bytes, const char * what) {
    if (std::any_of(begin, begin + n_bytes, [](char c) { return c != char(0xff); })) {
        broken(what);
    }
}

// what threads wait for
struct meeting {
    int n         = 0; // threads that come
    int n_arrived = 0;
    int round     = 0;

    void check() {
        if (n_arrived == n) {
            n_arrived = 0;
            round++;
        }
    }
};

struct warp {
    meeting  meet;
    int      op = 0;
    uint64_t values[2][32]; // of this round and of the last, which some lanes have still to read
};

struct thread {
    dim3       idx;
    bool       done = true;
    jmp_buf    env;
    ucontext_t start;

    std::unique_ptr<char[]> stack;
};

constexpr size_t N_BYTES_STACK = 128*1024;

static std::vector<std::unique_ptr<thread>> threads;
static std::vector<warp>                    warps;

static int     n_threads;
static int     n_running;
static int     n_idle; // turns since one of them could go on
static int     current;
static meeting block;
static jmp_buf outside;

static bool    is_last_warp_first;

static const std::function<void()> * body;

[[noreturn]] static void resume(int i) {
    current   = i;
    threadIdx = threads[i]->idx;
    _longjmp(threads[i]->env, 1);
}

static int last_lane(int warp) {
    return std::min(32*warp + 31, n_threads - 1);
}

[[noreturn]] static void resume_next() {
    const int n_warps = warps.size();

    int i = current;
    do {
        i = i % 32 > 0 ? i - 1 : last_lane((i/32 + (is_last_warp_first ? n_warps - 1 : 1)) % n_warps);
    } while (threads[i]->done);
    resume(i);
}

// the last one to come calls before_all_go
template <typename F>
static void wait(meeting & meet, const F & before_all_go) {
    const int round = meet.round;

    n_idle = 0;
    if (++meet.n_arrived == meet.n) {
        before_all_go();
    }
    meet.check();

    do {
        if (n_idle++ > 2*n_threads) {
            broken("threads wait for others that never come");
        }
        if (_setjmp(threads[current]->env) == 0) {
            resume_next();
        }
    } while (meet.round == round);
}

void __syncthreads() {
    wait(block, [] {});
}

int cuda_host_lane() {
    return current % 32;
}

template <typename F>
static const uint64_t * exchange(int op, uint64_t value, const F & last) {
    warp & w = warps[current/32];

    if (w.meet.n != 32) {
        broken("a warp without all of its lanes");
    }
    if (w.meet.n_arrived > 0 && w.op != op) {
        broken("the lanes of a warp are not at the same place");
    }

    uint64_t * values = w.values[w.meet.round % 2];

    w.op = op;
    values[current % 32] = value;
    wait(w.meet, [&] { last(values); });

    return values;
}

const uint64_t * cuda_host_exchange(int op, uint64_t value) {
    return exchange(op, value, [](const uint64_t *) {});
}

static void finish() {
    threads[current]->done = true;

    meeting & meet = warps[current/32].meet;

    if (meet.n_arrived > 0) {
        broken("a thread ends while its warp waits for it");
    }
    meet.n--;
    block.n--;
    block.check();
    n_idle = 0;

    if (_setjmp(threads[current]->env) == 0) {
        if (--n_running == 0) {
            _longjmp(outside, 1);
        }
        resume_next();
    }
}

[[noreturn]] static void fiber() {
    for (;;) {
        (*body)();
        finish();
    }
}

// comes back when all threads have ended
static void run_threads() {
    if (_setjmp(outside) == 0) {
        resume(last_lane(is_last_warp_first ? warps.size() - 1 : 0));
    }
}

// what a context begins with: it goes back at once, and from then on is resumed for a block
static void start_fiber() {
    if (_setjmp(threads.back()->env) == 0) {
        _longjmp(outside, 1);
    }
    fiber();
}

static void make_fiber() {
    auto & cur = *threads.emplace_back(new thread);

    cur.stack.reset(new char[N_BYTES_STACK]);
    getcontext(&cur.start);
    cur.start.uc_stack.ss_sp   = cur.stack.get();
    cur.start.uc_stack.ss_size = N_BYTES_STACK;
    cur.start.uc_link          = nullptr;
    makecontext(&cur.start, start_fiber, 0);

    if (_setjmp(outside) == 0) {
        setcontext(&threads.back()->start);
    }
}

static int n_launches_attn;
static int n_launches;

void cuda_host_run(dim3 grid, dim3 size, size_t n_bytes_shared, size_t n_args, const std::function<void()> & thread_body) {
    n_launches++;
    n_launches_attn += n_args > 20 || n_args == 1; // ggml's attention has many arguments, ours has one

    gridDim   = grid;
    blockDim  = size;
    body      = &thread_body;
    n_threads = size.x*size.y*size.z;

    constexpr size_t N_GUARD = 1024;

    if (n_threads > 1024 || n_threads == 0 || grid.x*grid.y*grid.z == 0 || n_bytes_shared + N_GUARD > CUDA_HOST_N_BYTES_SHARED) {
        broken("not a launch");
    }

    while (int(threads.size()) < n_threads) {
        make_fiber();
    }

    for (uint32_t z = 0; z < grid.z; ++z) {
        for (uint32_t y = 0; y < grid.y; ++y) {
            for (uint32_t x = 0; x < grid.x; ++x) {
                blockIdx = { x, y, z };

                for (int i = 0; i < n_threads; ++i) {
                    threads[i]->idx  = dim3(i % size.x, i/size.x % size.y, i/size.x/size.y);
                    threads[i]->done = false;
                }

                // what the block before has left is not there on a device
                memset(cuda_host_dynamic_shared, 0xff, n_bytes_shared + N_GUARD);

                warps.assign((n_threads + 31)/32, {});
                for (int i = 0; i < n_threads; ++i) {
                    warps[i/32].meet.n++;
                }
                block     = {};
                block.n   = n_threads;
                n_running = n_threads;
                n_idle    = 0;

                run_threads();

                check_guard(cuda_host_dynamic_shared + n_bytes_shared, N_GUARD, "a write behind shared memory");
            }
        }
    }
}

//
// PTX, as its manual has it. Lane i of a warp is in row i/4 of an 8x8 matrix, at columns 2*(i%4) and the next.
//

template <typename T>
static T & reg(uint64_t lane, int i) {
    return *(T *) ((void * const *) lane)[i];
}

// n matrices, the addresses of the rows of the i-th are those of the lanes from 8*i; the last register is the address
static void ldmatrix(const uint64_t * lanes, int n, bool trans) {
    for (int i = 0; i < 32; ++i) {
        for (int m = 0; m < n; ++m) {
            const auto at = [&](int row, int col) { return reg<const half *>(lanes[8*m + row], n)[col]; };

            const int row = i/4;
            const int col = i%4*2;

            half * dst = &reg<half>(lanes[i], m);

            dst[0] = trans ? at(col + 0, row) : at(row, col + 0);
            dst[1] = trans ? at(col + 1, row) : at(row, col + 1);
        }
    }
}

// D[16][8] += A[16][n_k]*B[n_k][8]: registers of D, then A, then B
template <typename T>
static void mma(const uint64_t * lanes, int n_k) {
    const int n_d = sizeof(T);
    const int n_a = n_k/4;
    const int n_b = n_k/8;

    float a[16][16];
    float b[8][16];

    for (int i = 0; i < 32; ++i) {
        for (int r = 0; r < n_a; ++r) {
            for (int l = 0; l < 2; ++l) {
                a[i/4 + r%2*8][i%4*2 + r/2*8 + l] = (&reg<half>(lanes[i], n_d + r))[l];
            }
        }
        for (int r = 0; r < n_b; ++r) {
            for (int l = 0; l < 2; ++l) {
                b[i/4][i%4*2 + r*8 + l] = (&reg<half>(lanes[i], n_d + n_a + r))[l];
            }
        }
    }
    for (int i = 0; i < 32; ++i) {
        for (int r = 0; r < 4; ++r) {
            const float * a_row = a[i/4 + r/2*8];
            const float * b_col = b[i%4*2 + r%2];

            T & d = sizeof(T) == 4 ? reg<T>(lanes[i], r) : (&reg<T>(lanes[i], r/2))[r%2];

            float sum = d;
            for (int k = 0; k < n_k; ++k) {
                sum += a_row[k]*b_col[k];
            }
            d = sum;
        }
    }
}

void cuda_host_ptx_run(const char * text, void * const * regs) {
    const auto is = [&](const char * what) { return strstr(text, what) != nullptr; };

    if (is("cp.async.cg.shared.global")) {
        memcpy(cuda_host_dynamic_shared + *(const uint32_t *) regs[0], *(const void * const *) regs[1], 16);
        return;
    }
    if (is("cp.async.wait_all")) {
        return;
    }

    exchange(text[0], uint64_t(regs), [&](const uint64_t * lanes) {
        if (is("ldmatrix.sync.aligned.m8n8")) {
            ldmatrix(lanes, is(".x4") ? 4 : 2, is(".trans"));
        } else if (is("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")) {
            mma<float>(lanes, 16);
        } else if (is("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32")) {
            mma<float>(lanes, 8);
        } else if (is("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16")) {
            mma<half>(lanes, 16);
        } else if (is("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16")) {
            mma<half>(lanes, 8);
        } else {
            broken(text);
        }
    });
}

//
// the device
//

static ggml_cuda_device_info info;
static int                   n_blocks_resident;

void cuda_host_set_device(int cc, int n_multiprocessors, int n_blocks, bool last_warp_first) {
    is_last_warp_first           = last_warp_first;
    info.device_count            = 1;
    info.devices[0].cc           = cc;
    info.devices[0].nsm          = n_multiprocessors;
    info.devices[0].warp_size    = 32;
    n_blocks_resident            = n_blocks;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int * res, const void *, int, size_t) {
    *res = n_blocks_resident;
    return cudaSuccess;
}

const ggml_cuda_device_info & ggml_cuda_info() { return info; }

void ggml_cuda_set_device(int) {}
int  ggml_cuda_get_device() { return 0; }

void ggml_cuda_error(const char * stmt, const char *, const char *, int, const char *) {
    broken(stmt);
}

// NaN where nothing was written, and behind it what must not be
struct guarded_pool : ggml_cuda_pool {
    static constexpr size_t N_GUARD = 4096;

    void * alloc(size_t size, size_t * actual_size) override {
        *actual_size = size;
        return memset(malloc(size + N_GUARD), 0xff, size + N_GUARD);
    }

    void free(void * ptr, size_t size) override {
        check_guard((char *) ptr + size, N_GUARD, "a write behind memory of the pool");
        ::free(ptr);
    }
};

std::unique_ptr<ggml_cuda_pool> ggml_backend_cuda_context::new_pool_for_device(int, int) {
    return std::make_unique<guarded_pool>();
}

ggml_backend_cuda_context::~ggml_backend_cuda_context() {}

//
// nodes
//

static cuda_host_trace trace;

void cuda_host_chosen(cuda_host_kernel kernel) {
    trace.kernel = kernel;
}

cuda_host_trace cuda_host_compute(ggml_tensor * node) {
    ggml_backend_cuda_context ctx(0);

    n_launches      = 0;
    n_launches_attn = 0;

    llama_self_extend_cuda_compute(ctx, node);

    trace.n_launches = n_launches_attn;
    trace.n_other    = n_launches - n_launches_attn;

    return trace;
}
