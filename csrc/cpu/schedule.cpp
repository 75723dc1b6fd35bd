#include "schedule.h"

#include <algorithm>
#include <numeric>

#include "huge_pages.h"

namespace spcl {

void (*check_interrupt)() = nullptr;

namespace {
// Blocks along a side of a group: of fewer blocks the packed rows and gradients of two stay in the
// second-level cache anyway, and a worker would take too large a share of all tiles.
int64_t side_of_groups(int64_t num_blocks) { return num_blocks < 24 ? 1 : 2; }
}  // namespace

void Schedule::add(int64_t i, int64_t j) {
  tiles_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(j), counts_[i], counts_[j]});
  ++counts_[i];
  if (i != j) ++counts_[j];
}

void Schedule::add_group(int64_t side, int64_t i, int64_t i_end, int64_t j, int64_t j_end) {
  groups_.push_back(static_cast<int64_t>(tiles_.size()));
  // By diagonals, so that neighbours share no block.
  for (int64_t shift = 0; shift < side; ++shift) {
    for (int64_t r = 0; r < side; ++r) {
      const int64_t row = i + r, col = j + (r + shift) % side;
      if (row < i_end && col < j_end && (i != j || row <= col)) add(row, col);
    }
  }
}

std::vector<int64_t> Schedule::shares(int64_t num_workers) const {
  std::vector<int64_t> out = groups_;
  if (num_concurrent_groups_ < 2 * num_workers) {
    out.resize(tiles_.size());
    std::iota(out.begin(), out.end(), int64_t{0});
  }
  out.push_back(static_cast<int64_t>(tiles_.size()));
  return out;
}

Schedule Schedule::triangle(int64_t num_blocks) {
  Schedule schedule(num_blocks);
  schedule.tiles_.reserve(num_blocks * (num_blocks + 1) / 2);
  const int64_t side = side_of_groups(num_blocks), num_sides = (num_blocks + side - 1) / side;
  schedule.num_concurrent_groups_ = num_sides / 2;
  // Of an odd number of players p, round r pairs those whose sum is 2 r modulo p, and r itself sits
  // out, here for its diagonal tiles. An even number gets one more player, whose pairs are dropped.
  const int64_t players = num_sides | 1;
  for (int64_t round = 0; round < players; ++round) {
    for (int64_t k = 0; k <= players / 2; ++k) {
      const int64_t a = (round + k) % players, b = (round + players - k) % players;
      if (std::max(a, b) >= num_sides) continue;
      schedule.add_group(side, std::min(a, b) * side, num_blocks, std::max(a, b) * side,
                         num_blocks);
    }
  }
  return schedule;
}

Schedule Schedule::band(const std::vector<int32_t>& last) {
  const int64_t num_blocks = static_cast<int64_t>(last.size());
  Schedule schedule(num_blocks);
  bool any = true;
  for (int64_t distance = 0; any; ++distance) {
    any = false;
    // Tiles (i, i + distance) of one parity of i / distance share no block.
    for (int64_t parity = 0; parity < (distance ? 2 : 1); ++parity) {
      for (int64_t i = 0; i + distance < num_blocks; ++i) {
        if (distance && i / distance % 2 != parity) continue;
        if (i + distance > last[i]) continue;
        schedule.add(i, i + distance);
        any = true;
      }
    }
  }
  return schedule;
}

Schedule Schedule::intervals(const std::vector<int32_t>& first, const std::vector<int32_t>& last,
                             int64_t num_cols) {
  const int64_t num_rows = static_cast<int64_t>(first.size());
  Schedule schedule(num_rows + num_cols);
  bool any = true;
  for (int64_t round = 0; any; ++round) {
    any = false;
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t width = last[i] - first[i] + 1;
      if (round >= width) continue;
      // Rows of one class have the same columns: each starts at another one.
      schedule.add(i, num_rows + first[i] + (round + i) % width);
      any = true;
    }
  }
  return schedule;
}

Schedule Schedule::rectangle(int64_t num_rows, int64_t num_cols, int64_t num_spans) {
  Schedule schedule(num_spans * num_rows + num_cols);
  schedule.tiles_.reserve(num_rows * num_cols);
  const int64_t width = (num_cols + num_spans - 1) / num_spans;
  const int64_t side = side_of_groups(std::min(num_rows, width));
  const int64_t row_sides = (num_rows + side - 1) / side, col_sides = (width + side - 1) / side;
  const int64_t shorter = std::min(row_sides, col_sides), longer = std::max(row_sides, col_sides);
  schedule.num_concurrent_groups_ = shorter * num_spans;
  for (int64_t round = 0; round < longer; ++round) {
    for (int64_t k = 0; k < shorter; ++k) {
      const int64_t other = (round + k) % longer;
      const int64_t i = side * (row_sides <= col_sides ? k : other);
      const int64_t j = side * (row_sides <= col_sides ? other : k);
      for (int64_t span = 0; span < num_spans; ++span) {
        const int64_t rows = span * num_rows, cols = num_spans * num_rows + span * width;
        const int64_t cols_end = std::min(cols + width, schedule.num_blocks());
        if (cols + j < cols_end) {
          schedule.add_group(side, rows + i, rows + num_rows, cols + j, cols_end);
        }
      }
    }
  }
  return schedule;
}

Scratch::Scratch(int64_t size) {
  constexpr size_t kLine = 64;
  const size_t bytes = size * sizeof(float), alignment = bytes < kHugePage ? kLine : kHugePage;
  memory_.reset(new float[size + alignment / sizeof(float)]);
  const auto address = reinterpret_cast<uintptr_t>(memory_.get());
  aligned_ = memory_.get() + (alignment - address % alignment) % alignment / sizeof(float);
  advise_huge_pages(aligned_, bytes);
}

int64_t num_workers(int64_t num_tasks) {
  return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), num_tasks));
}

}  // namespace spcl
