#pragma once

#include "attention/cuda/schedule.h"

#include "common.cuh"

//
// the partial results of a row become its attention: one block for each row, one thread for each value
//

// where a row stands
struct llama_self_extend_row {
    int32_t token; // of the batch
    int32_t head;

    static __device__ llama_self_extend_row current() {
        return { int32_t(blockIdx.x), int32_t(blockIdx.y) };
    }

    // of gridDim.y heads with blockDim.x values each
    __device__ int64_t index() const {
        return int64_t(token)*gridDim.y + head;
    }

    __device__ void store(float * dst, float value) const {
        dst[index()*blockDim.x + threadIdx.x] = value;
    }
};

// partial: as ggml's vector and tile kernels leave them, [D, n_per_part, n_head, n_tokens, 2], meta without D
static __global__ void llama_self_extend_merge_parts(
        const float * partial, const float2 * meta, const float * sinks, float * dst, const int n_per_part) {
    ggml_cuda_pdl_sync();

    const auto row = llama_self_extend_row::current();

    const int64_t n_rows = int64_t(gridDim.x)*gridDim.y;
    const int     D      = blockDim.x;

    // the i-th of a row, far before near
    const auto at = [&](int i) {
        const int part = i >= n_per_part;

        return (part*n_rows + row.index())*n_per_part + (i - part*n_per_part);
    };

    row.store(dst, llama_self_extend_merge(2*n_per_part,
            [&](int i) { return meta   [at(i)]; },
            [&](int i) { return partial[at(i)*D + threadIdx.x]; },
            sinks ? sinks[row.head] : LLAMA_SELF_EXTEND_MAX_NONE));
}

// partial: as the tensor-core kernel leaves them, in the slots of the schedule
static __global__ void llama_self_extend_merge_pieces(
        const llama_self_extend_schedule schedule, const float2 * partial, const float * sinks, float * dst,
        const int n_gqa, const int n_tps, const int ncols1, const int ncols2, const int n_partial) {
    ggml_cuda_pdl_sync();

    const auto row = llama_self_extend_row::current();

    const int stream = row.token / n_tps;
    const int t      = row.token % n_tps;
    const int c      = row.head  % n_gqa;

    const int n_tiles_tokens = (n_tps + ncols1 - 1)/ncols1;
    const int n_tiles_gqa    = (n_gqa + ncols2 - 1)/ncols2;

    const int column    = stream*n_tiles_tokens + t/ncols1;
    const int head_tile = row.head/n_gqa*n_tiles_gqa + c/ncols2;
    const int i_row     = t%ncols1*ncols2 + c%ncols2; // of the tile

    const auto far  = schedule.share(head_tile, column, 0);
    const auto near = schedule.share(head_tile, column, 1);

    const auto at = [&](int i) {
        return partial + int64_t(i < far.n ? far.slot + i : near.slot + (i - far.n))*n_partial;
    };

    row.store(dst, llama_self_extend_merge(far.n + near.n,
            [&](int i) { return at(i)[i_row]; },
            [&](int i) { return ((const float *) (at(i) + ncols1*ncols2))[i_row*blockDim.x + threadIdx.x]; },
            sinks ? sinks[row.head] : LLAMA_SELF_EXTEND_MAX_NONE));
}

// The columns of a batch: the blocks of n_cells that the tokens of each tile see. One block of threads.
constexpr int LLAMA_SELF_EXTEND_N_THREADS_COLUMNS = 256;

__launch_bounds__(LLAMA_SELF_EXTEND_N_THREADS_COLUMNS, 1)
static __global__ void llama_self_extend_find_columns(
        const llama_self_extend_range * ranges, llama_self_extend_column * columns, const int n_columns,
        const int n_tps, const int ncols1, const int n_cells) {
    ggml_cuda_pdl_sync();

    constexpr int N = LLAMA_SELF_EXTEND_N_THREADS_COLUMNS;

    __shared__ int sums[N];

    const int n_tiles_tokens = (n_tps + ncols1 - 1)/ncols1;

    int first = 0; // of these N columns

    for (int i0 = 0; i0 < n_columns; i0 += N) {
        const int i = i0 + threadIdx.x;

        llama_self_extend_column column = {};

        if (i < n_columns) {
            const int stream = i / n_tiles_tokens;
            const int t      = i % n_tiles_tokens*ncols1;

            column = llama_self_extend_column_of(ranges + stream*n_tps + t, min(ncols1, n_tps - t), n_cells);
        }

        const int n = column.n[0] + column.n[1];

        // sums of the columns up to each
        sums[threadIdx.x] = n;
        __syncthreads();
        for (int d = 1; d < N; d *= 2) {
            const int add = int(threadIdx.x) >= d ? sums[threadIdx.x - d] : 0;
            __syncthreads();
            sums[threadIdx.x] += add;
            __syncthreads();
        }

        if (i < n_columns) {
            column.first = first + sums[threadIdx.x] - n;
            columns[i]   = column;
        }

        first += sums[N - 1];
        __syncthreads();
    }

    if (threadIdx.x == 0) {
        columns[n_columns] = { { 0, 0 }, { 0, 0 }, first };
    }
}
