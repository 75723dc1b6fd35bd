// Which tile runs when, on which thread.
//
// A tile updates what belongs to its block of rows i and to its block of columns j: sums,
// gradients. Workers take the tiles of a list in order, and a tile waits until the earlier tiles of
// its two blocks are done. So nothing needs an atomic or a copy a thread, and every block is
// updated in the order of the list: one list gives the same bits on any number of threads.
//
// The count of finished tiles of a block is stored with release order after the tile's last write
// and awaited with acquire order before the next tile's first: no two threads touch a block at
// once, and each sees all that was written before. A worker waits only for tiles that were taken
// before its own, so the earliest unfinished tile never waits, and none waits for ever.
//
// The list is ordered so that neighbours share no block, which makes waiting rare. Of a large
// matrix the tiles of two blocks by two follow each other: a worker takes them together and reads
// each block once, unless so many workers would wait for each other.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "parallel.h"

namespace spcl {

struct ScheduledTile {
  int32_t i, j;                // blocks
  int32_t before_i, before_j;  // tiles of these blocks earlier in the list
};

class Schedule {
 public:
  // Every tile i <= j of a square of blocks, as a round-robin tournament plays its pairs.
  static Schedule triangle(int64_t num_blocks);
  // Tiles i <= j <= last[i], by their distance from the diagonal.
  static Schedule band(const std::vector<int32_t>& last);
  // Tiles of row blocks i against column blocks [first[i], last[i]], numbered after the row blocks.
  static Schedule intervals(const std::vector<int32_t>& first, const std::vector<int32_t>& last,
                            int64_t num_cols);
  // Every tile of row blocks against column blocks. The columns come in `num_spans` spans of
  // equal size (but the last); the row blocks of span g are g num_rows + i, the column blocks
  // follow after those of all spans.
  static Schedule rectangle(int64_t num_rows, int64_t num_cols, int64_t num_spans);

  const std::vector<ScheduledTile>& tiles() const { return tiles_; }
  int64_t num_blocks() const { return static_cast<int64_t>(counts_.size()); }
  // The tiles after which a worker takes others, from 0 to tiles().size().
  std::vector<int64_t> shares(int64_t num_workers) const;

 private:
  explicit Schedule(int64_t num_blocks) : counts_(num_blocks, 0) {}
  void add(int64_t i, int64_t j);
  // Blocks [i, min(i + side, i_end)) against [j, min(j + side, j_end)); where both are the same
  // those on and above the diagonal.
  void add_group(int64_t side, int64_t i, int64_t i_end, int64_t j, int64_t j_end);

  std::vector<ScheduledTile> tiles_;
  std::vector<int32_t> counts_;
  std::vector<int64_t> groups_;        // the first tile of each
  int64_t num_concurrent_groups_ = 0;  // that share no block
};

// Throws if the user has pressed Ctrl-C; set by the Python module, null without one.
extern void (*check_interrupt)();

// Floats aligned to a cache line, in huge pages where they fill some.
class Scratch {
 public:
  explicit Scratch(int64_t size);
  float* data() const { return aligned_; }

 private:
  std::unique_ptr<float[]> memory_;
  float* aligned_;
};

int64_t num_workers(int64_t num_tasks);

// Calls body(tile, its index, the index of the worker's next tile or that of none, scratch of the
// worker) for every tile; the next one is a guess: as if all workers were as fast.
template <class Body>
void run(const Schedule& schedule, int64_t scratch_size, const Body& body) {
  const auto& tiles = schedule.tiles();
  const int64_t num_tiles = static_cast<int64_t>(tiles.size());
  const int64_t workers = num_workers(num_tiles);
  std::vector<Scratch> scratch;  // before any worker waits: an allocation can fail
  for (int64_t w = 0; w < workers; ++w) scratch.emplace_back(scratch_size);
  const std::vector<int64_t> shares = schedule.shares(workers);
  const int64_t num_shares = static_cast<int64_t>(shares.size()) - 1;
  const std::unique_ptr<std::atomic<int32_t>[]> done(
      new std::atomic<int32_t>[schedule.num_blocks()]);
  for (int64_t b = 0; b < schedule.num_blocks(); ++b) done[b].store(0, std::memory_order_relaxed);
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  const auto caller = std::this_thread::get_id();

  const auto wait = [&](int32_t block, int32_t count) {
    for (int spins = 0; done[block].load(std::memory_order_acquire) != count; ++spins) {
      if (stop.load(std::memory_order_relaxed)) return false;
      if (spins > 64) std::this_thread::yield();
    }
    return true;
  };
  const auto work = [&](int64_t worker) {
    using Clock = std::chrono::steady_clock;
    constexpr auto kBetweenChecks = std::chrono::milliseconds(100);
    const bool checks = check_interrupt && std::this_thread::get_id() == caller;
    auto last_check = Clock::now();
    for (;;) {
      const int64_t share = next.fetch_add(1, std::memory_order_relaxed);
      if (share >= num_shares || stop.load(std::memory_order_relaxed)) return;
      const int64_t end = shares[share + 1], after = shares[std::min(share + workers, num_shares)];
      for (int64_t index = shares[share]; index < end; ++index) {
        const ScheduledTile& tile = tiles[index];
        if (!wait(tile.i, tile.before_i) || !wait(tile.j, tile.before_j)) return;
        body(tile, index, index + 1 < end ? index + 1 : after, scratch[worker].data());
        done[tile.i].store(tile.before_i + 1, std::memory_order_release);
        if (tile.i != tile.j) done[tile.j].store(tile.before_j + 1, std::memory_order_release);
      }
      if (checks && Clock::now() - last_check > kBetweenChecks) {
        check_interrupt();
        last_check = Clock::now();
      }
    }
  };
  const auto work_or_stop = [&](int64_t worker) {
    try {
      work(worker);
    } catch (...) {
      stop.store(true, std::memory_order_relaxed);
      throw;
    }
  };
  if (workers <= 1) {
    work_or_stop(0);
    return;
  }
  parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) work_or_stop(worker);
  });
}

}  // namespace spcl
