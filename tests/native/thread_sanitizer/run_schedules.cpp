// Runs every kind of schedule on 1, 2, 3, 5 and 8 threads, on data that no lock protects, and with
// the kernels, which take longer, on 1 and 3, for ThreadSanitizer to watch; prints how many runs
// there were, and fails if the number of threads changes a bit of a result.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "schedule.h"
#include "tile_kernels.h"

namespace {

using spcl::Schedule;
using spcl::ScheduledTile;
using spcl::Tile;
using spcl::TileKernels;

constexpr int64_t kRows = 27, D = 21;  // ragged strips and vectors

struct Case {
  std::string name;
  Schedule schedule;
  bool is_square;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  // Any two tiles of 3 share a block; those of 25 are in groups.
  for (int64_t n : {1, 2, 3, 4, 7, 12, 25}) {
    std::vector<int32_t> last(n), first(n), end(n);
    for (int64_t i = 0; i < n; ++i) {
      last[i] = static_cast<int32_t>(std::min(n - 1, i + 2 + i % 3));
      first[i] = static_cast<int32_t>(i / 2);
      end[i] = static_cast<int32_t>(std::min(n - 1, i / 2 + i % 4)) - (i == 4);  // 4: none
    }
    const std::string size = " of " + std::to_string(n);
    all.push_back({"triangle" + size, Schedule::triangle(n), true});
    all.push_back({"band" + size, Schedule::band(last), true});
    all.push_back({"intervals" + size, Schedule::intervals(first, end, n), false});
    for (int64_t spans : {1, 2, 3}) {
      const std::string name = "rectangle" + size + ", spans: " + std::to_string(spans);
      all.push_back({name, Schedule::rectangle(n, 5, spans), false});
      all.push_back({name + ", turned", Schedule::rectangle(2, n + 2, spans), false});
    }
  }
  all.push_back({"rectangle of 25 by 51, spans: 2", Schedule::rectangle(25, 51, 2), false});
  return all;
}

// Two numbers a block, updated so that another order of the tiles gives another result.
std::vector<float> mix(const Case& c) {
  std::vector<float> state(2 * c.schedule.num_blocks(), 1.0f);
  spcl::run(c.schedule, 1, [&](const ScheduledTile& tile, int64_t index, int64_t, float* scratch) {
    scratch[0] = 1.0f + static_cast<float>(index % 7);
    for (int64_t block : {tile.i, tile.j}) {
      state[2 * block] = state[2 * block] * 0.75f + scratch[0];
      state[2 * block + 1] += state[2 * block] * 0.125f;
    }
  });
  return state;
}

// The sums of powers of every row, then the gradient: what csrc/cpu/pair_lse.cpp does with a tile.
class Rows {
 public:
  Rows(const TileKernels& kernels, int64_t num_blocks)
      : kernels_(kernels),
        z_(num_blocks * kRows * D),
        sliver_size_((kRows + kernels.sliver_rows - 1) / kernels.sliver_rows * kernels.sliver_rows *
                     D),
        slice_size_(kRows * (D + spcl::kPad)),
        slivers_(num_blocks * sliver_size_),
        slices_(num_blocks * slice_size_) {
    for (size_t k = 0; k < z_.size(); ++k) z_[k] = static_cast<float>(k * 37 % 101) / 101 - 0.5f;
    for (int64_t b = 0; b < num_blocks; ++b) {
      kernels.pack_slivers(rows(), b * kRows, kRows, &slivers_[b * sliver_size_]);
      kernels.pack_slices(rows(), b * kRows, kRows, &slices_[b * slice_size_]);
    }
  }

  std::vector<float> compute(const Case& c) const {
    const int64_t num_rows = static_cast<int64_t>(z_.size()) / D;
    std::vector<float> out(num_rows * (1 + D), 0.0f), u(num_rows + spcl::kPad, 0.0f);
    std::vector<int32_t> y(num_rows + spcl::kPad, -1);
    float *sums = out.data(), *dz = sums + num_rows;
    const spcl::Scale scale(1.4426950408889634);
    spcl::run(c.schedule, 0, [&](const ScheduledTile& at, int64_t, int64_t, float*) {
      const Tile tile = tile_of(c, at);
      float row_sums[spcl::kTile], col_sums[spcl::kTile];
      kernels_.exp_sums(tile, scale, row_sums, col_sums, nullptr);
      for (int64_t r = 0; r < kRows; ++r) sums[at.i * kRows + r] += row_sums[r];
      for (int64_t r = 0; r < kRows; ++r) sums[at.j * kRows + r] += col_sums[r];
    });
    for (int64_t i = 0; i < num_rows; ++i) {
      u[i] = 1 / (1 + sums[i]);
      y[i] = static_cast<int32_t>(i % 5);
    }
    const int64_t h_size = spcl::kTile * spcl::kTileStride;
    spcl::run(c.schedule, h_size, [&](const ScheduledTile& at, int64_t, int64_t, float* h) {
      const Tile tile = tile_of(c, at);
      const float *u_i = &u[at.i * kRows], *u_j = &u[at.j * kRows];
      const spcl::LabelTile label = {&y[at.i * kRows], &y[at.j * kRows], u_i, u_j, u_i, u_j, 0.5f};
      kernels_.softmax_gradient(tile, scale, u_i, u_j, {&label, 1}, h);
      float* targets[spcl::kTile];
      point_at(dz, at.i, targets);
      kernels_.add_rows(tile, h, &slices_[at.j * slice_size_], nullptr, targets);
      if (tile.is_diagonal) return;
      point_at(dz, at.j, targets);
      kernels_.add_columns(tile, h, &slices_[at.i * slice_size_], nullptr, targets);
    });
    return out;
  }

 private:
  spcl::Rows rows() const {
    return {z_.data(), D, nullptr, static_cast<int64_t>(z_.size()) / D, D};
  }
  Tile tile_of(const Case& c, const ScheduledTile& at) const {
    const bool is_diagonal = c.is_square && at.i == at.j;
    return {&slivers_[at.i * sliver_size_],
            &slivers_[at.j * sliver_size_],
            kRows,
            kRows,
            D,
            is_diagonal};
  }
  static void point_at(float* dz, int64_t block, float** targets) {
    for (int64_t r = 0; r < kRows; ++r) targets[r] = dz + (block * kRows + r) * D;
  }

  const TileKernels& kernels_;
  std::vector<float> z_;
  int64_t sliver_size_, slice_size_;  // of a block
  std::vector<float> slivers_, slices_;
};

// An error in one worker ends the run, and reaches the caller.
bool error_is_passed_on(const Case& c) {
  const int64_t last = static_cast<int64_t>(c.schedule.tiles().size()) - 1;
  try {
    spcl::run(c.schedule, 1, [&](const ScheduledTile&, int64_t index, int64_t, float*) {
      if (index == last / 2) throw std::runtime_error("planted");
    });
  } catch (const std::runtime_error&) {
    return true;
  }
  return last < 0;
}

int num_runs = 0;

template <class Compute>
bool same_on_any_threads(const char* what, const Case& c, std::initializer_list<int> numbers,
                         const Compute& compute) {
  std::vector<float> first;
  for (int threads : numbers) {
    torch::stable::num_threads = threads;
    const std::vector<float> result = compute();
    ++num_runs;
    if (threads == 1) first = result;
    if (std::memcmp(first.data(), result.data(), first.size() * sizeof(float)) == 0) continue;
    std::printf("%s, %s: %d threads give another result\n", what, c.name.c_str(), threads);
    return false;
  }
  return true;
}

bool runs_on_this_cpu(const TileKernels& kernels) {
#if defined(__x86_64__)
  if (&kernels == &spcl::kAvx2Kernels) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return true;
}

}  // namespace

// The argument "mix" leaves out the kernels.
int main(int argc, char** argv) {
  bool passed = true;
  std::vector<const TileKernels*> tables = {&spcl::kBaselineKernels};
#if defined(__x86_64__)
  tables.push_back(&spcl::kAvx2Kernels);
#endif
  if (argc > 1 && std::strcmp(argv[1], "mix") == 0) tables.clear();
  for (const Case& c : cases()) {
    passed &= same_on_any_threads("mix", c, {1, 2, 3, 5, 8}, [&] { return mix(c); });
    torch::stable::num_threads = 3;
    passed &= error_is_passed_on(c);
    for (const TileKernels* kernels : tables) {
      if (!runs_on_this_cpu(*kernels)) continue;
      const Rows rows(*kernels, c.schedule.num_blocks());
      passed &= same_on_any_threads(kernels->name, c, {1, 3}, [&] { return rows.compute(c); });
    }
  }
  std::printf("%d runs\n", num_runs);
  return passed ? 0 : 1;
}
