// Every kernel of csrc/cuda in one translation unit without PyTorch, to be compiled and inspected.
#include "gradient.cuh"
#include "pair_lse.cuh"
#include "positive_pair_histogram.cuh"
#include "positive_pair_loss.cuh"
#include "positive_ranges.cuh"

namespace spcl::cuda {

#define INSTANTIATE(T)                                                                \
  template __global__ void pair_gradient<T>(const float*, Panel, T*, int64_t, Scalar, \
                                            LseGradients, Labels, const float*)
INSTANTIATE(float);
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);

template __global__ void merge_sums<LogSums>(LogSums, Side, Side);
template __global__ void merge_sums<PairSums>(PairSums, Side, Side);

#define INSTANTIATE_KEY(Key)                                                                 \
  template __global__ void count_ranges<Key>(const Key*, int64_t, const Key*, int64_t, Key,  \
                                             int64_t, int2*, int64_t*, int*);                \
  template __global__ void find_ranges<Key>(const Key*, int64_t, const Key*, const int64_t*, \
                                            int64_t, Key, int64_t, int2*, int64_t*, int*)
INSTANTIATE_KEY(int64_t);
INSTANTIATE_KEY(double);

}  // namespace spcl::cuda
