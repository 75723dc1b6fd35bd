#include "class_sums.h"

namespace spcl {
namespace {

// Sorted rows of one class and the sorted columns that are their positives.
struct ClassRun {
  Range rows, cols;
};

std::vector<ClassRun> class_runs(const SortedLabels& sorted) {
  std::vector<ClassRun> runs;
  const int64_t num_rows = static_cast<int64_t>(sorted.positives.size());
  for (int64_t i = 0; i < num_rows; ++i) {
    const Range cols = sorted.positives[i];
    if (sorted.num_pos(i) == 0) continue;
    if (runs.empty() || runs.back().cols.begin != cols.begin) runs.push_back({{i, i}, cols});
    runs.back().rows.end = i + 1;
  }
  return runs;
}

template <class F>
void for_each_run(const SortedLabels& sorted, int64_t D, F f) {
  const std::vector<ClassRun> runs = class_runs(sorted);
  const int64_t num_runs = static_cast<int64_t>(runs.size());
  const int64_t work = static_cast<int64_t>(sorted.positives.size()) * D;
  const int64_t grain = 1 + (num_runs << 16) / std::max<int64_t>(work, 1);  // worth a thread
  parallel_for(0, num_runs, grain, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) f(runs[k]);
  });
}

const float* row_of(const Operand& x, int64_t i) {
  return x.rows().data + x.rows().order[i] * x.rows().stride;
}

// sum of factor(i) x_i over the sorted rows in range. A class can hold most rows: one running sum
// of them in float32 would lose digits.
template <class Factor>
std::vector<double> weighted_sum(const Operand& x, Range range, Factor factor) {
  std::vector<double> total(x.D(), 0.0);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const float* row = row_of(x, i);
    const double f = factor(i);
    for (int64_t d = 0; d < x.D(); ++d) total[d] += f * row[d];
  }
  return total;
}

// x . (total - self x) over D features, in sums that wait for none of the others.
double similarity(const float* x, const double* total, double self, int64_t D) {
  constexpr int64_t kChains = 8;
  double sums[kChains] = {};
  int64_t d = 0;
  for (; d + kChains <= D; d += kChains) {
    for (int64_t k = 0; k < kChains; ++k) sums[k] += x[d + k] * (total[d + k] - self * x[d + k]);
  }
  for (; d < D; ++d) sums[0] += x[d] * (total[d] - self * x[d]);
  for (int64_t half = kChains / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

}  // namespace

void class_similarities(const SortedLabels& sorted, const Operand& rows, const Operand& cols,
                        double* sims) {
  for_each_run(sorted, rows.D(), [&](const ClassRun& run) {
    const std::vector<double> total = weighted_sum(cols, run.cols, [](int64_t) { return 1.0; });
    for (int64_t i = run.rows.begin; i < run.rows.end; ++i) {
      sims[i] = similarity(row_of(rows, i), total.data(), sorted.is_square, rows.D());
    }
  });
}

void class_gradients(const SortedLabels& sorted, const Operand& rows, const Operand& cols,
                     const std::vector<float>& c, double tau, float* dz, float* drefs) {
  const int64_t D = rows.D();
  const auto factor = [&](int64_t i) { return -c[i] / tau; };
  for_each_run(sorted, rows.D(), [&](const ClassRun& run) {
    const std::vector<double> total = weighted_sum(cols, run.cols, [](int64_t) { return 1.0; });
    const std::vector<double> weighted = weighted_sum(rows, run.rows, factor);
    for (int64_t i = run.rows.begin; dz && i < run.rows.end; ++i) {
      const float* row = row_of(rows, i);
      float* out = dz + sorted.row_order[i] * D;
      const double f = factor(i);
      if (sorted.is_square) {
        for (int64_t d = 0; d < D; ++d) out[d] = f * total[d] + weighted[d] - 2 * f * row[d];
      } else {
        for (int64_t d = 0; d < D; ++d) out[d] = f * total[d];
      }
    }
    for (int64_t j = run.cols.begin; drefs && j < run.cols.end; ++j) {
      float* out = drefs + sorted.col_order[j] * D;
      for (int64_t d = 0; d < D; ++d) out[d] = weighted[d];
    }
  });
}

}  // namespace spcl
