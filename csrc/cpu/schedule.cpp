#include "schedule.h"

#include <algorithm>

namespace spcl {

void (*check_interrupt)() = nullptr;

void Schedule::add(int64_t i, int64_t j) {
  tiles_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(j), counts_[i], counts_[j]});
  ++counts_[i];
  if (i != j) ++counts_[j];
}

Schedule Schedule::triangle(int64_t num_blocks) {
  Schedule schedule(num_blocks);
  schedule.tiles_.reserve(num_blocks * (num_blocks + 1) / 2);
  // Of an odd number of players p, round r pairs those whose sum is 2 r modulo p, and r itself sits
  // out, here for its diagonal tile. An even number gets one more player, whose pairs are dropped.
  const int64_t players = num_blocks | 1;
  for (int64_t round = 0; round < players; ++round) {
    for (int64_t k = 0; k <= players / 2; ++k) {
      const int64_t a = (round + k) % players, b = (round + players - k) % players;
      if (std::max(a, b) < num_blocks) schedule.add(std::min(a, b), std::max(a, b));
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
  const int64_t shorter = std::min(num_rows, width), longer = std::max(num_rows, width);
  for (int64_t round = 0; round < longer; ++round) {
    for (int64_t k = 0; k < shorter; ++k) {
      const int64_t other = (round + k) % longer;
      const int64_t i = num_rows <= width ? k : other, j = num_rows <= width ? other : k;
      for (int64_t span = 0; span < num_spans; ++span) {
        const int64_t col = span * width + j;
        if (col < num_cols) schedule.add(span * num_rows + i, num_spans * num_rows + col);
      }
    }
  }
  return schedule;
}

Scratch::Scratch(int64_t size) : memory_(new float[size + 16]) {
  const auto address = reinterpret_cast<uintptr_t>(memory_.get());
  aligned_ = memory_.get() + (64 - address % 64) % 64 / sizeof(float);
}

int64_t num_workers(int64_t num_tasks) {
  return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), num_tasks));
}

}  // namespace spcl
