// Labels whose positives the dense gradient takes along: linear weights.
//
// A tile of the dense gradient has the similarities at hand, so the positives of a label cost some
// operations a pair there and no product, however coarse the label is.
#pragma once

#include "positives.cuh"

namespace spcl::cuda {

struct LinearLabels {
  int64_t size;    // how many
  int64_t stride;  // from label to label, of ranges, ranks and c
};

// h_j += c_i w_ij + c_j w_ji over the positives of every label in one row of the panel, with
// c = -dloss / |P| / tau. ranges, ranks and c: (size, stride), gamma: (size,). Row by row: all rows
// at once would need twice the registers, and what belongs to columns comes from the L1 cache.
__device__ inline void add_linear_labels(LinearLabels labels, const int2* __restrict__ ranges,
                                         const int* __restrict__ ranks, const float* __restrict__ c,
                                         const float* __restrict__ gamma, int64_t row, int64_t col,
                                         bool has_cols, float lse_i,
                                         const float (&lse_j)[kColsOfLane],
                                         const float (&sims)[kColsOfLane],
                                         float (&h)[kColsOfLane]) {
  for (int64_t k = 0; k < labels.size; ++k) {
    const int64_t offset = k * labels.stride;
    const PairWeight weight(gamma[k], false);
    const int2 range = ranges[offset + row];
    const float c_i = c[offset + row];
    int rank[kColsOfLane];
    float c_j[kColsOfLane];
    load_columns<int, int4>(ranks + offset, col, has_cols, rank);
    load_columns<float, float4>(c + offset, col, has_cols, c_j);
#pragma unroll
    for (int j = 0; j < kColsOfLane; ++j) {
      const float both = c_i * weight(lse_i - sims[j]) + c_j[j] * weight(lse_j[j] - sims[j]);
      if (is_positive(range, rank[j])) h[j] += both;
    }
  }
}

}  // namespace spcl::cuda
