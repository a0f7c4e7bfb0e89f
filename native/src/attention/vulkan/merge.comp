#version 450

// The partial results of both parts become one row: each is the sum of a range of cells with the maximum M of its scores
// and the sum L of its weights, as ggml's flash_attn.comp leaves them. A range of which nothing is seen has L = 0.

layout(local_size_x = 64, local_size_y = 1, local_size_z = 1) in;

const uint N = 64;

layout(binding = 0) readonly  buffer Far   { float data_far [];  }; // [D, n_head, n_far,  n_rows], then L and M of all of
layout(binding = 1) readonly  buffer Near  { float data_near[];  }; // [D, n_head, n_near, n_rows], them [n_head, 2, n, n_rows]
layout(binding = 2) readonly  buffer Sinks { float data_sinks[]; };
layout(binding = 3) writeonly buffer Dst   { float data_dst[];   }; // [D, n_head, n_rows]

layout(push_constant) uniform parameter {
    uint D;
    uint n_head;
    uint n_rows;
    uint n_far;
    uint n_near;
    uint has_sinks;
} p;

shared float weights[N];

uint index(uint i, uint n, uint row) {
    return (row*n + i)*p.n_head + gl_WorkGroupID.y;
}

uint index_l(uint i, uint n, uint row) {
    return p.D*p.n_head*n*p.n_rows + (row*n + i)*p.n_head*2 + gl_WorkGroupID.y;
}

float get_l(uint i, uint row) {
    return i < p.n_far ? data_far[index_l(i, p.n_far, row)] : data_near[index_l(i - p.n_far, p.n_near, row)];
}

float get_m(uint i, uint row) {
    return i < p.n_far ? data_far[index_l(i, p.n_far, row) + p.n_head] : data_near[index_l(i - p.n_far, p.n_near, row) + p.n_head];
}

float get_sum(uint i, uint row, uint d) {
    return i < p.n_far ? data_far[index(i, p.n_far, row)*p.D + d] : data_near[index(i - p.n_far, p.n_near, row)*p.D + d];
}

void main() {
    const uint row = gl_WorkGroupID.x;
    const uint tid = gl_LocalInvocationID.x;
    const uint d   = gl_WorkGroupID.z*N + tid;
    const uint n   = p.n_far + p.n_near;

    float m_max = p.has_sinks != 0 ? data_sinks[gl_WorkGroupID.y] : uintBitsToFloat(0xFF7FFFFF);
    for (uint i = tid; i < n; i += N) {
        m_max = max(m_max, get_m(i, row));
    }

    weights[tid] = m_max;
    barrier();
    for (uint s = N/2; s > 0; s /= 2) {
        if (tid < s) {
            weights[tid] = max(weights[tid], weights[tid + s]);
        }
        barrier();
    }
    m_max = weights[0];
    barrier();

    float sum = 0.0;
    float l   = p.has_sinks != 0 ? exp(data_sinks[gl_WorkGroupID.y] - m_max) : 0.0;

    for (uint i0 = 0; i0 < n; i0 += N) {
        if (i0 + tid < n) {
            weights[tid] = exp(get_m(i0 + tid, row) - m_max);
        }
        barrier();
        for (uint i = i0; i < min(i0 + N, n); ++i) {
            l   += weights[i - i0]*get_l(i, row);
            sum += d < p.D ? weights[i - i0]*get_sum(i, row, d) : 0.0;
        }
        barrier();
    }

    if (d < p.D) {
        data_dst[(row*p.n_head + gl_WorkGroupID.y)*p.D + d] = l == 0.0 ? 0.0 : sum/l;
    }
}
