// The rows of one side of the similarity matrix, cut into blocks of at most kTile.
#pragma once

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "schedule.h"
#include "tile_kernels.h"

namespace spcl {

// Rows of a block: enough blocks for several threads, and whole strips and vectors in each.
// spcl_fast/native/tile_cache.py knows this rule too.
inline int64_t block_rows(int64_t num_rows) {
  constexpr int64_t kStep = 96, kEnoughBlocks = 16;
  if (num_rows <= kTile) return kTile;
  const int64_t steps = (num_rows + kStep * kEnoughBlocks - 1) / (kStep * kEnoughBlocks);
  return std::min(kTile, steps * kStep);
}

class Operand {
 public:
  // `order` (N,) or null reads the rows in that order; it must outlive the operand.
  explicit Operand(const Tensor& x, const int64_t* order = nullptr)
      // Only the features of a row have to be neighbours in memory.
      : x_(x.size(1) <= 1 || x.stride(1) == 1 ? x : as_contiguous(x)),
        rows_{x_.const_data_ptr<float>(), x_.stride(0), order, x_.size(0), x_.size(1)},
        block_(block_rows(x.size(0))) {}

  int64_t size() const { return rows_.size; }
  int64_t D() const { return rows_.D; }
  int64_t block() const { return block_; }
  int64_t num_blocks() const { return (size() + block_ - 1) / block_; }
  int64_t begin(int64_t block) const { return block * block_; }
  int64_t size(int64_t block) const { return std::min(block_, size() - begin(block)); }
  const Rows& rows() const { return rows_; }

  // Packs every block for products with it: in slivers for dot products, in slices for sums of
  // rows.
  void pack_slivers() {
    const TileKernels& kernels = best_tile_kernels();
    const int64_t step = kernels.sliver_rows;
    slivers_.emplace(pack((size() + step - 1) / step * step * D(), D(), kernels.pack_slivers));
  }
  void pack_slices() {
    slices_.emplace(pack(size() * slice_width(), slice_width(), best_tile_kernels().pack_slices));
  }
  const float* slivers(int64_t block) const {
    return slivers_->data() + begin(block) * D();
  }
  const float* slices(int64_t block) const {
    return slices_->data() + begin(block) * slice_width();
  }

  // Blocks that are worth a thread.
  int64_t grain() const { return 1 + (int64_t{1} << 16) / (block_ * std::max<int64_t>(D(), 1)); }

  double max_squared_norm() const {
    std::vector<double> largest(num_blocks(), 0.0);
    parallel_for(0, num_blocks(), grain(), [&](int64_t first, int64_t last) {
      const int64_t count = std::min(size(), begin(last)) - begin(first);
      largest[first] = best_tile_kernels().max_squared_norm(rows_, begin(first), count);
    });
    return largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end());
  }

 private:
  int64_t slice_width() const { return (D() + kPad - 1) / kPad * kPad; }
  // Returns `size` floats, `width` for each row of the blocks before.
  template <class Pack>
  Scratch pack(int64_t size, int64_t width, Pack kernel) const {
    Scratch packed(size);
    float* out = packed.data();
    parallel_for(0, num_blocks(), grain(), [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        kernel(rows_, begin(b), this->size(b), out + begin(b) * width);
      }
    });
    return packed;
  }

  Tensor x_;
  Rows rows_;
  int64_t block_;
  std::optional<Scratch> slivers_, slices_;
};

// Values of the rows, with the padding that the kernels may read.
inline std::vector<float> padded(int64_t size) { return std::vector<float>(size + kPad, 0.0f); }

}  // namespace spcl
