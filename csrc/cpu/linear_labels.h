// Labels whose positives the dense gradient takes along: linear weights of a finite gamma.
//
// A tile of the dense gradient has the similarities at hand, so the positives of a label cost some
// operations a pair there and no product, however coarse the label is.
#pragma once

#include <cmath>
#include <unordered_map>
#include <vector>

#include "checks.h"
#include "operand.h"
#include "tile_kernels.h"

namespace spcl {

class LinearLabels {
 public:
  // labels, c = dloss / |P|, (N,) each, and gamma, (), one of each a label. The kernels' exponents
  // are `unit` times the similarities.
  LinearLabels(const Tensors& labels, const Tensors& c, const Tensors& gamma, const Tensor& lse,
               double tau, double unit) {
    SPCL_CHECK(labels.size() == c.size() && labels.size() == gamma.size(),
               "labels, c and gamma must have as many tensors, got ", labels.size(), ", ", c.size(),
               " and ", gamma.size());
    for (size_t k = 0; k < labels.size(); ++k) {
      check_labels("labels", labels[k], lse.numel());
      check_values("c", c[k], lse.numel());
      const double pace = positive_scalar("gamma", gamma[k]);
      labels_.push_back({row_ids(labels[k]), {}, {}, {}, static_cast<float>(1 / (pace * unit))});
      add_rows(labels_.back(), c[k], lse, tau, pace);
    }
  }

  // What the kernels need for a tile whose first row and column these are.
  std::vector<LabelTile> tile(int64_t row0, int64_t col0) const {
    std::vector<LabelTile> tiles;
    for (const Label& x : labels_) {
      tiles.push_back(
          {&x.rows[row0], &x.cols[col0], &x.b[row0], &x.b[col0], &x.c[row0], &x.c[col0], x.slope});
    }
    return tiles;
  }

 private:
  struct Label {
    std::vector<int32_t> rows, cols;  // dense ids; an unknown row differs from every column
    std::vector<float> b, c;
    float slope;
  };

  static std::vector<int32_t> row_ids(const Tensor& labels) {
    const Tensor values = as_contiguous(as_type(labels, ScalarType::Long));
    const int64_t* value = values.const_data_ptr<int64_t>();
    const int64_t size = values.numel();
    std::unordered_map<int64_t, int32_t> ids;
    std::vector<int32_t> rows(size + kPad, -1);
    for (int64_t i = 0; i < size; ++i) {
      if (value[i] < 0) continue;
      rows[i] = ids.try_emplace(value[i], static_cast<int32_t>(ids.size())).first->second;
    }
    return rows;
  }

  // w = 1 - (lse_i - s) / gamma = b_i + slope (unit s); a row with nothing to compare has no pairs.
  static void add_rows(Label& label, const Tensor& c_tensor, const Tensor& lse_tensor, double tau,
                       double gamma) {
    const Tensor factors = as_contiguous(c_tensor), lses = as_contiguous(lse_tensor);
    const float* factor = factors.const_data_ptr<float>();
    const float* lse = lses.const_data_ptr<float>();
    const int64_t num_rows = lses.numel();
    label.cols = label.rows;
    for (int32_t& id : label.cols) id = id < 0 ? -2 : id;
    label.b = padded(num_rows);
    label.c = padded(num_rows);
    for (int64_t i = 0; i < num_rows; ++i) {
      label.b[i] = 1 - lse[i] / gamma;
      label.c[i] = -factor[i] / tau;
    }
  }

  std::vector<Label> labels_;
};

}  // namespace spcl
