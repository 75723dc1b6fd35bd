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

// sum of factors_i x_i over the sorted rows in range, or of x_i.
std::vector<double> weighted_sum(const Operand& x, Range range, const double* factors) {
  std::vector<double> total(x.D(), 0.0);
  const int64_t count = range.end - range.begin;
  best_tile_kernels().add_sum_of_rows(x.rows(), range.begin, count, factors, total.data());
  return total;
}

}  // namespace

void class_similarities(const SortedLabels& sorted, const Operand& rows, const Operand& cols,
                        double* sims) {
  const TileKernels& kernels = best_tile_kernels();
  for_each_run(sorted, rows.D(), [&](const ClassRun& run) {
    const std::vector<double> total = weighted_sum(cols, run.cols, nullptr);
    for (int64_t i = run.rows.begin; i < run.rows.end; ++i) {
      sims[i] = kernels.product_with_rest(row_of(rows, i), total.data(), sorted.is_square,
                                          rows.D());
    }
  });
}

void add_class_gradients(const SortedLabels& sorted, const Operand& rows, const Operand& cols,
                         const std::vector<float>& c, double tau, float* dz, float* drefs) {
  const TileKernels& kernels = best_tile_kernels();
  const int64_t D = rows.D();
  std::vector<double> factors(rows.size());
  for (int64_t i = 0; i < rows.size(); ++i) factors[i] = -c[i] / tau;
  for_each_run(sorted, D, [&](const ClassRun& run) {
    const std::vector<double> total = weighted_sum(cols, run.cols, nullptr);
    const std::vector<double> weighted = weighted_sum(rows, run.rows, factors.data());
    for (int64_t i = run.rows.begin; dz && i < run.rows.end; ++i) {
      const float* row = sorted.is_square ? row_of(rows, i) : nullptr;
      kernels.add_class_row(factors[i], total.data(), weighted.data(), row, D,
                            dz + sorted.row_order[i] * D);
    }
    for (int64_t j = run.cols.begin; drefs && j < run.cols.end; ++j) {
      kernels.add_class_row(1, weighted.data(), nullptr, nullptr, D,
                            drefs + sorted.col_order[j] * D);
    }
  });
}

}  // namespace spcl
