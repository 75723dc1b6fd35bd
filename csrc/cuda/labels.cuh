// The labels of a launch: their positive pairs, paces, and the factors of their gradients.
#pragma once

#include "positives.cuh"
#include "scalar.cuh"

namespace spcl::cuda {

// So many that their sums of a panel stay below half of the panel itself.
constexpr int kMostLabels = 8;

// c = dloss / |P|, of gradients alone.
struct Labels {
  int64_t size, is_hard;
  const int2* ranges;                 // (size, range_stride)
  const int* ranks;                   // (size, rank_stride)
  int64_t range_stride, rank_stride;  // from label to label
  Scalar gamma[kMostLabels];
  Values c[kMostLabels];
};

// The self-paced weight of a pair from its loss; spcl_fast/pair_weights.py. NaN stays NaN.
struct PairWeight {
  float gamma, slope;
  bool is_hard;

  __device__ PairWeight(const Labels& labels, int64_t k)
      : gamma(read(labels.gamma[k]).high), slope(1 / gamma), is_hard(labels.is_hard) {}
  __device__ float operator()(float pair_loss) const {
    if (is_hard) return pair_loss <= gamma ? 1 : gamma == gamma ? 0 : gamma;
    const float weight = 1 - pair_loss * slope;
    return weight < 0 ? 0 : weight > 1 ? 1 : weight;
  }
};

}  // namespace spcl::cuda
