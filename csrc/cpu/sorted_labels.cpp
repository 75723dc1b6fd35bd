#include "sorted_labels.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

namespace spcl {
namespace {

template <class Key>
using Keys = std::vector<std::pair<Key, int64_t>>;  // label and row, sorted

template <class Key>
bool is_known(Key label) {
  if constexpr (std::is_integral_v<Key>) return label >= 0;
  return label >= 0 && std::isfinite(static_cast<double>(label));
}

// Sorts labels of rows that are in order; equal ones stay so.
template <class Key>
void sort_in_place(Keys<Key>& known) {
  if constexpr (std::is_integral_v<Key>) {
    Key last = 0;
    for (const auto& [label, row] : known) last = std::max(last, label);
    if (last / 4 < static_cast<Key>(known.size())) {  // as labels mostly are: counted, not compared
      std::vector<int64_t> begin(last + 2, 0);
      for (const auto& [label, row] : known) ++begin[label + 1];
      for (Key label = 0; label < last; ++label) begin[label + 1] += begin[label];
      Keys<Key> sorted(known.size());
      for (const auto& entry : known) sorted[begin[entry.first]++] = entry;
      known.swap(sorted);
      return;
    }
  }
  std::sort(known.begin(), known.end());
}

// Returns the known labels in order, and the order of all rows.
template <class Key>
Keys<Key> sort_labels(const Tensor& labels, std::vector<int64_t>& order) {
  constexpr auto kType = std::is_integral_v<Key> ? ScalarType::Long : ScalarType::Double;
  const Tensor values = as_contiguous(as_type(labels, kType));
  const Key* value = values.const_data_ptr<Key>();
  const int64_t size = values.numel();
  Keys<Key> known;
  known.reserve(size);
  std::vector<int64_t> unknown;
  for (int64_t i = 0; i < size; ++i) {
    if (is_known(value[i])) {
      known.emplace_back(value[i], i);
    } else {
      unknown.push_back(i);
    }
  }
  sort_in_place(known);
  order.reserve(size);
  for (const auto& [label, row] : known) order.push_back(row);
  order.insert(order.end(), unknown.begin(), unknown.end());
  return known;
}

// The intervals move to the right as the labels grow. Differences are rounded as the reference
// rounds them, and rounding keeps order.
template <class Key>
std::vector<Range> intervals(const Keys<Key>& rows, const Keys<Key>& cols, Key window,
                             int64_t num_rows) {
  std::vector<Range> positives(num_rows, Range{0, 0});
  const int64_t num_cols = static_cast<int64_t>(cols.size());
  int64_t begin = 0, end = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Key label = rows[i].first;
    if (i > 0 && label == rows[i - 1].first) {
      positives[i] = positives[i - 1];
      continue;
    }
    while (begin < num_cols && label - cols[begin].first > window) ++begin;
    end = std::max(begin, end);
    while (end < num_cols && cols[end].first - label <= window) ++end;
    positives[i] = {begin, end};
  }
  return positives;
}

template <class Key>
void sort_and_match(SortedLabels& sorted, const Tensor& labels,
                    const OptionalTensor& ref_labels, Key window) {
  const Keys<Key> rows = sort_labels<Key>(labels, sorted.row_order);
  if (!ref_labels) {
    sorted.positives = intervals(rows, rows, window, labels.numel());
  } else {
    const Keys<Key> cols = sort_labels<Key>(*ref_labels, sorted.col_order);
    sorted.positives = intervals(rows, cols, window, labels.numel());
  }
}

}  // namespace

SortedLabels::SortedLabels(const Tensor& labels, const OptionalTensor& ref_labels,
                           std::optional<double> window)
    : is_square(!ref_labels) {
  if (window) {
    sort_and_match<double>(*this, labels, ref_labels, *window);
  } else {
    sort_and_match<int64_t>(*this, labels, ref_labels, 0);
  }
}

}  // namespace spcl
