// Runs the kernels of csrc/cuda on the host, panel by panel as their drivers do, against sums in
// float64; prints what differs and fails. The simulator of kernels is included ahead of this file,
// and SIMULATOR is its namespace.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gradient.cuh"
#include "pair_lse.cuh"
#include "panels.h"
#include "positive_pair_histogram.cuh"
#include "positive_pair_loss.cuh"
#include "positive_ranges.cuh"

namespace {

using namespace spcl::cuda;

constexpr int64_t D = 5, kElements = 128 * 300, kRows = 128;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kGamma = 6, kUpper = 40;
constexpr int64_t kBins = 16;
int num_checks = 0, num_wrong = 0;
bool is_short = false;

void print_counts() { std::printf("%d checks, %d wrong\n", num_checks, num_wrong); }

struct Case {
  std::string name;
  int64_t N, M;  // M = 0: square
  double tau, norm, spread;
  double window;  // below 0: equal labels
};

double unit(int64_t k) { return static_cast<double>((k * 7919 + 104729) % 10007) / 10007; }

std::vector<float> rows(const Case& c, int64_t size, int64_t seed) {
  std::vector<float> z(size * D);
  for (int64_t i = 0; i < size; ++i) {
    double norm = 0;
    for (int64_t d = 0; d < D; ++d) {
      z[i * D + d] = static_cast<float>(unit(seed + i * D + d) - 0.5);
      norm += z[i * D + d] * z[i * D + d];
    }
    const double length = c.norm * std::pow(c.spread, unit(seed + 31 * i));
    for (int64_t d = 0; d < D; ++d) z[i * D + d] *= static_cast<float>(length / std::sqrt(norm));
  }
  return z;
}

void check(const Case& c, const char* what, double actual, double truth, double tolerance) {
  ++num_checks;
  if (std::fabs(actual - truth) <= tolerance) return;
  if (++num_wrong <= 10) {
    std::printf("%s: %s is %g instead of %g\n", c.name.c_str(), what, actual, truth);
  }
  if (!is_short) return;
  print_counts();
  std::exit(1);
}

// The matrix of one case in float64, and what the kernels get of it.
struct Problem {
  Case c;
  bool is_square;
  int64_t num_cols;
  std::vector<float> z, refs;
  Scalar tau;
  std::vector<double> labels, ref_labels;
  std::vector<Panel> panels;

  explicit Problem(const Case& given)
      : c(given),
        is_square(c.M == 0),
        num_cols(is_square ? c.N : c.M),
        z(rows(c, c.N, 1)),
        refs(is_square ? z : rows(c, c.M, 5003)),
        tau(is_square ? Scalar{&c.tau, kDoubleScalar, kNaN, kNaN} : scalar(c.tau)),
        panels(make_panels(c.N, num_cols, is_square, kElements, kRows)) {
    for (int64_t i = 0; i < c.N; ++i) labels.push_back(label(i));
    for (int64_t j = 0; j < num_cols; ++j)
      ref_labels.push_back(is_square ? labels[j] : label(3 * j));
  }

  double label(int64_t i) const {
    if (i % 11 == 3) return -1;
    return c.window < 0 ? static_cast<double>(i * 13 % 5) : unit(i);
  }
  double sim(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += static_cast<double>(z[i * D + d]) * refs[j * D + d];
    return sum / c.tau;
  }
  double size() const { return std::pow(c.norm * c.spread, 2) / c.tau; }  // of a similarity
  bool is_pair(int64_t i, int64_t j) const { return !is_square || i != j; }
  bool is_positive(int64_t i, int64_t j) const {
    if (!is_pair(i, j) || labels[i] < 0 || ref_labels[j] < 0) return false;
    return std::fabs(labels[i] - ref_labels[j]) <= std::max(0.0, c.window);
  }
  std::vector<float> products(const Panel& panel) const {
    std::vector<float> x(panel_size(panel), kNaN);
    for (int64_t r = 0; r < panel.num_rows; ++r) {
      for (int64_t k = 0; k < panel.num_cols; ++k) {
        const double product = sim(panel.row0 + r, panel.col0 + k) * c.tau;
        x[r * panel.stride + k] = static_cast<float>(product);
      }
    }
    return x;
  }
};

dim3 tiles(const Panel& panel) {
  return dim3(static_cast<unsigned>(row_parts(panel)), static_cast<unsigned>(col_parts(panel)));
}
dim3 blocks(int64_t size, int64_t of) { return dim3(static_cast<unsigned>(ceil_div(size, of))); }

struct Lse {
  std::vector<float> rows, cols;
};

template <class Sums>
void merge_panel(const Problem& p, const Panel& panel, const Sums& sums, bool has_cols) {
  const Side rows = row_side(panel, p.num_cols);
  Side cols = col_side(panel, p.c.N);
  if (!has_cols) cols.size = 0;
  SIMULATOR::launch(merge_sums<Sums>, blocks(merge_blocks(rows, cols), 1), kThreads, 0, sums, rows,
                    cols);
}

Lse run_lse(const Problem& p) {
  const LogSum nothing = {kNaN, kNaN};
  std::vector<LogSum> row_total(p.c.N, nothing), own_col_total(p.c.M, nothing);
  Lse lse = {std::vector<float>(p.c.N, kNaN), std::vector<float>(p.c.M, kNaN)};
  for (const Panel& panel : p.panels) {
    const std::vector<float> x = p.products(panel);
    std::vector<LogSum> row(row_parts(panel) * panel.num_rows, nothing);
    std::vector<LogSum> col(col_parts(panel) * panel.num_cols, nothing);
    SIMULATOR::launch(sum_exponentials, tiles(panel), kThreads, 0, x.data(), panel, p.tau,
                      row.data(), col.data());
    const LogSums sums = {row.data(),       col.data(),
                          row_total.data(), p.is_square ? row_total.data() : own_col_total.data(),
                          lse.rows.data(),  lse.cols.data()};
    merge_panel(p, panel, sums, true);
  }
  if (p.is_square) lse.cols = lse.rows;
  return lse;
}

void check_lse(const Problem& p, const Lse& lse) {
  const auto expected = [&](int64_t own, int64_t others, bool is_row) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t k = 0; k < others; ++k) {
        if (!p.is_pair(own, k)) continue;
        const double s = is_row ? p.sim(own, k) : p.sim(k, own);
        if (pass == 0) top = std::max(top, s);
        if (pass == 1) sum += std::exp(s - top);
      }
    }
    return sum > 0 ? top + std::log(sum) : -std::numeric_limits<double>::infinity();
  };
  const double size = p.size();
  for (int64_t i = 0; i < p.c.N; ++i) {
    const double truth = expected(i, p.num_cols, true);
    if (p.is_square && p.c.N == 1) {
      check(p.c, "lse of one row", lse.rows[i] == truth, 1, 0);
    } else {
      check(p.c, "lse", lse.rows[i], truth, 1e-6 + 4e-7 * size);
    }
  }
  for (int64_t j = 0; j < p.c.M; ++j) {
    check(p.c, "lse of references", lse.cols[j], expected(j, p.c.N, false), 1e-6 + 4e-7 * size);
  }
}

// The positives of all rows as the drivers find them, here from a stable sort.
struct Ranges {
  std::vector<int2> ranges;
  std::vector<int> ranks;
  std::vector<int64_t> num_pos;
};

template <class Key>
Ranges find(const Problem& p, Key window) {
  const std::vector<Key> keys(p.labels.begin(), p.labels.end());
  const std::vector<Key> cols(p.ref_labels.begin(), p.ref_labels.end());
  std::vector<int64_t> order(p.num_cols);
  for (int64_t j = 0; j < p.num_cols; ++j) order[j] = j;
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return cols[a] > cols[b]; });
  std::vector<Key> sorted(p.num_cols);
  for (int64_t j = 0; j < p.num_cols; ++j) sorted[j] = cols[order[j]];
  const auto empty = [&] {
    return Ranges{std::vector<int2>(p.c.N, {-1, -1}), std::vector<int>(p.num_cols, -1),
                  std::vector<int64_t>(p.c.N, -1)};
  };
  Ranges out = empty(), counted = empty();
  const int64_t is_square = p.is_square;
  SIMULATOR::launch(find_ranges<Key>, blocks(std::max(p.c.N, p.num_cols), kThreads), kThreads, 0,
                    keys.data(), p.c.N, sorted.data(), order.data(), p.num_cols, window, is_square,
                    out.ranges.data(), out.num_pos.data(), out.ranks.data());
  SIMULATOR::launch(count_ranges<Key>, blocks(p.c.N + p.num_cols, kWarps), kThreads, 0, keys.data(),
                    p.c.N, cols.data(), p.num_cols, window, is_square, counted.ranges.data(),
                    counted.num_pos.data(), counted.ranks.data());
  for (int64_t i = 0; i < p.c.N; ++i) {
    check(p.c, "begin of a range", counted.ranges[i].x, out.ranges[i].x, 0);
    check(p.c, "end of a range", counted.ranges[i].y, out.ranges[i].y, 0);
  }
  check(p.c, "counts", counted.num_pos == out.num_pos, 1, 0);
  check(p.c, "ranks", counted.ranks == out.ranks, 1, 0);
  return out;
}

Ranges find_positives(const Problem& p) {
  return p.c.window < 0 ? find<int64_t>(p, 0) : find<double>(p, p.c.window);
}

double pair_weight(double loss, bool is_hard) {
  return is_hard ? loss <= kGamma : std::clamp(1 - loss / kGamma, 0.0, 1.0);
}

// dlse and c are made up.
std::vector<float> made_up(int64_t size, int64_t seed) {
  std::vector<float> x(size);
  for (int64_t i = 0; i < size; ++i) x[i] = static_cast<float>(unit(seed + i) - 0.3);
  return x;
}

double value(float x) { return x; }
double value(__half x) { return __half2float(x); }
double value(__nv_bfloat16 x) { return __bfloat162float(x); }

// The labels of kernels: `num_labels` times the same, with factors c if there are any.
Labels labels_of(const Ranges& positives, int64_t num_labels, bool is_hard,
                 const std::vector<float>& c) {
  Labels labels = {num_labels, is_hard, positives.ranges.data(), positives.ranks.data(), 0, 0};
  for (int64_t k = 0; k < num_labels; ++k) {
    labels.gamma[k] = scalar(kGamma);
    labels.c[k] = {c.data(), 1};
  }
  return labels;
}

// What the gradient of a panel is made of; `unit` multiplies it.
struct Terms {
  bool has_dlse;
  int64_t num_labels;
  bool is_hard;
  float unit;
};

template <class T>
void check_gradients(const Problem& p, const Lse& lse, const Ranges& positives, const Terms& terms,
                     double tolerance) {
  const std::vector<float> a = made_up(p.c.N, 17), b = p.is_square ? a : made_up(p.num_cols, 29);
  const std::vector<float> c = made_up(p.c.N, 43);
  const Labels labels = labels_of(positives, terms.num_labels, terms.is_hard, c);
  LseGradients upstream = {lse.rows.data(), lse.cols.data(), {a.data(), 1}, {b.data(), 1}};
  if (!terms.has_dlse) upstream.row_dlse = upstream.col_dlse = {nullptr, 1};
  for (const Panel& panel : p.panels) {
    std::vector<float> x = p.products(panel);
    std::vector<T> own(panel_size(panel));
    T* h = own.data();
    if constexpr (std::is_same_v<T, float>) h = x.data();  // in place
    SIMULATOR::launch(pair_gradient<T>, tiles(panel), kThreads, 0, x.data(), panel, h, panel.stride,
                      p.tau, upstream, labels, terms.unit == 1 ? nullptr : &terms.unit);
    for (int64_t r = 0; r < panel.num_rows; ++r) {
      for (int64_t k = 0; k < panel.num_cols; ++k) {
        const int64_t i = panel.row0 + r, j = panel.col0 + k;
        const double s = p.sim(i, j);
        double truth = a[i] * std::exp(s - lse.rows[i]) + b[j] * std::exp(s - lse.cols[j]);
        if (!terms.has_dlse) truth = 0;
        if (terms.num_labels && p.is_positive(i, j)) {
          double both = c[i] * pair_weight(lse.rows[i] - s, terms.is_hard);
          if (p.is_square) both += c[j] * pair_weight(lse.rows[j] - s, terms.is_hard);
          truth -= static_cast<double>(terms.num_labels) * both;
        }
        if (!p.is_pair(i, j)) truth = 0;
        const double factor = p.c.tau / terms.unit;
        check(p.c, "h", value(h[r * panel.stride + k]) * factor, truth,
              tolerance + 1e-7 * p.size());
      }
    }
  }
}

// The bound on h to which the unit is the answer.
void check_unit(const Problem& p, const Ranges& positives) {
  const std::vector<float> a = made_up(p.c.N, 17), b = p.is_square ? a : made_up(p.num_cols, 29);
  const std::vector<float> c = made_up(p.c.N, 43);
  const Labels labels = labels_of(positives, 2, false, c);
  const auto largest = [](const std::vector<float>& x) {
    double top = 0;
    for (float value : x) top = std::max(top, std::fabs(static_cast<double>(value)));
    return top;
  };
  const double bound = (largest(a) + largest(b) + 4 * largest(c)) / p.c.tau;
  float unit = kNaN;
  SIMULATOR::launch(find_unit, 1, kThreads, 0, Values{a.data(), 1}, Values{b.data(), 1}, labels,
                    p.c.N, p.num_cols, p.tau, &unit);
  check(p.c, "unit", unit, std::exp2(std::floor(std::log2((1 << 14) / bound))), 0);
}

void check_positive_sums(const Problem& p, const Lse& lse, const Ranges& positives, bool is_hard) {
  std::vector<PairTotal> total(p.c.N, PairTotal{kNaN, kNaN});
  std::vector<float> loss(p.c.N, kNaN), weight_sum(p.c.N, kNaN);
  std::vector<Count> counts(kBins, 0);
  const Labels labels = labels_of(positives, 1, is_hard, {});
  for (const Panel& panel : p.panels) {
    const std::vector<float> x = p.products(panel);
    std::vector<PairSum> row(row_parts(panel) * panel.num_rows, {kNaN, kNaN});
    std::vector<PairSum> col(p.is_square ? col_parts(panel) * panel.num_cols : 0, {kNaN, kNaN});
    SIMULATOR::launch(sum_positive_pairs, tiles(panel), kThreads, 0, x.data(), panel, p.tau,
                      lse.rows.data(), labels, row.data(), col.data());
    const PairSums sums = {
        row.data(),    col.data(),         total.data(), p.c.N, {positives.num_pos.data()},
        {loss.data()}, {weight_sum.data()}};
    merge_panel(p, panel, sums, p.is_square);
    SIMULATOR::launch(count_positive_pairs, tiles(panel), kThreads, 0, x.data(), panel, p.tau,
                      lse.rows.data(), labels.ranges, labels.ranks, scalar(kUpper), kBins,
                      counts.data());
  }
  double num_pairs = 0, num_counted = 0, below = 0, counted_below = 0;
  for (int64_t i = 0; i < p.c.N; ++i) {
    double loss_sum = 0, sum = 0, count = 0;
    for (int64_t j = 0; j < p.num_cols; ++j) {
      if (!p.is_positive(i, j)) continue;
      const double l = lse.rows[i] - p.sim(i, j), w = pair_weight(l, is_hard);
      loss_sum += w * l, sum += w, ++count;
      below += l < kUpper / 2;
    }
    num_pairs += count;
    check(p.c, "num_pos", static_cast<double>(positives.num_pos[i]), count, 0);
    check(p.c, "loss", loss[i], loss_sum / std::max(1.0, count), 2e-5);
    check(p.c, "weight_sum", weight_sum[i], sum, 1e-5 * std::max(1.0, count));
  }
  for (int64_t k = 0; k < kBins; ++k) {
    num_counted += static_cast<double>(counts[k]);
    counted_below += k < kBins / 2 ? static_cast<double>(counts[k]) : 0;
  }
  check(p.c, "count of pairs", num_counted, num_pairs, 0);
  check(p.c, "count of pairs below", counted_below, below, 1);
}

void run(const Case& c) {
  const Problem p(c);
  const Lse lse = run_lse(p);
  check_lse(p, lse);
  if (p.is_square && p.c.N == 1) return;  // lse is -inf
  const Ranges positives = find_positives(p);
  check_positive_sums(p, lse, positives, c.window >= 0);
  check_gradients<float>(p, lse, positives, {true, 2, false, 1}, 4e-5);
  if (is_short) return;
  check_unit(p, positives);
  check_gradients<float>(p, lse, positives, {false, 1, false, 1}, 2e-5);
  check_gradients<__half>(p, lse, positives, {true, 1, false, 1 / 4.0f}, 1e-3);
  check_gradients<__half>(p, lse, positives, {false, 1, true, 8}, 1e-3);
  check_gradients<__nv_bfloat16>(p, lse, positives, {true, 0, false, 1}, 1e-2);
  check_gradients<__nv_bfloat16>(p, lse, positives, {false, 2, true, 1}, 2e-2);
}

}  // namespace

// The argument "short" leaves out half precision and what comes after the first that is wrong;
// "races" also most of the blocks, since none looks at what another writes.
int main(int argc, char** argv) {
  const bool for_races = argc > 1 && std::strcmp(argv[1], "races") == 0;
  is_short = for_races || (argc > 1 && std::strcmp(argv[1], "short") == 0);
  SIMULATOR::seed = 1;
  run({"square of 1", 1, 0, 0.07, 1, 1, -1});
  // Powers that no shift can share; the hard weight leaves pairs out; ragged tiles.
  run({"norms of 1 to 8", for_races ? 70 : 150, 0, 0.07, 1, 8, 0.2});
  // More columns than a panel is wide, more tiles than warps; no pair is left out.
  run({"20 against many", 20, for_races ? 130 : 2100, 0.07, 1, 1, 0.05});
  // Several panels, ragged tiles, both orders of a pair across panels; equal labels and windows.
  if (!for_races) run({"square of 260", 260, 0, 0.07, 1, 1, -1});
  // One row of a panel has a partner in another one only.
  if (!is_short) run({"square of 129", 129, 0, 0.2, 1, 1, 0.1});
  print_counts();
  return num_wrong > 0;
}
