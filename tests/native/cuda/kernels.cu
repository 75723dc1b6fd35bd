// Every kernel of csrc/cuda in one translation unit without PyTorch, to be compiled and inspected.
#include "pair_lse.cuh"
#include "positive_pair_histogram.cuh"
#include "positive_pair_loss.cuh"
#include "positive_ranges.cuh"
#include "scale.cuh"

namespace spcl::cuda {

#define INSTANTIATE(T)                                                                          \
  template __global__ void pair_gradient<T>(                                                    \
      const float*, Panel, T*, int64_t, const float*, const float*, const float*, const float*, \
      const float*, LinearLabels, const int2*, const int*, const float*, const float*);         \
  template __global__ void positive_gradient<T>(const float*, Panel, T*, int64_t, const float*, \
                                                const float*, const int2*, const int*,          \
                                                const float*, const float*, int64_t)
INSTANTIATE(float);
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);

#define INSTANTIATE_KEY(Key)                                                               \
  template __global__ void find_ranges<Key>(const Key*, int64_t, const Key*, int64_t, Key, \
                                            int64_t, int2*, int64_t*)
INSTANTIATE_KEY(int64_t);
INSTANTIATE_KEY(double);

}  // namespace spcl::cuda
