// The kernels of tile_kernels.h for one instruction set; included once by each of
// tile_kernels_{baseline,avx2,avx512}.cpp, which define SPCL_ISA, SPCL_LANES and SPCL_ROWS.

#include "tile_kernels.h"

namespace spcl {
namespace SPCL_ISA {
namespace {

#include "vector.h"

#include "multiply.h"

SPCL_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
SPCL_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

SPCL_INLINE const float* row_of(const Rows& rows, int64_t i) {
  return rows.data + (rows.order ? rows.order[i] : i) * rows.stride;
}

void pack(const Rows& rows, int64_t begin, int64_t count, float* packed) {
  constexpr int64_t kLine = 16;  // floats of a cache line
  const int64_t D = rows.D;
  for (int64_t j = 0; j < count; j += kCols, packed += kCols * D) {
    const int64_t width = min_of(kCols, count - j);
    for (int64_t d = 0; d < D; d += kLine) {
      const int64_t depth = min_of(kLine, D - d);
      for (int64_t c = 0; c < width; ++c) {
        const float* row = row_of(rows, begin + j + c) + d;
        for (int64_t k = 0; k < depth; ++k) packed[(d + k) * kCols + c] = row[k];
      }
      for (int64_t c = width; c < kCols; ++c) {
        for (int64_t k = 0; k < depth; ++k) packed[(d + k) * kCols + c] = 0;
      }
    }
  }
}

void copy(const Rows& rows, int64_t begin, int64_t count, float* out, int64_t stride) {
  for (int64_t i = 0; i < count; ++i, out += stride) {
    __builtin_memcpy(out, row_of(rows, begin + i), sizeof(float) * rows.D);
    for (int64_t d = rows.D; d < stride; ++d) out[d] = 0;
  }
}

double max_squared_norm(const Rows& rows, int64_t begin, int64_t count) {
  float largest = 0;
  for (int64_t i = begin; i < begin + count; ++i) {
    const float* row = row_of(rows, i);
    Vec squares = {};
    int64_t d = 0;
    for (; d + kLanes <= rows.D; d += kLanes) squares += load(row + d) * load(row + d);
    float total = sum(squares);
    for (; d < rows.D; ++d) total += row[d] * row[d];
    if (!(total <= __FLT_MAX__)) return __builtin_inf();
    largest = total > largest ? total : largest;
  }
  return largest;
}

// Which of columns [j, j + kLanes) lie in [begin, end) and are not `skip`.
SPCL_INLINE Mask in_range(int64_t j, int64_t begin, int64_t end, int64_t skip) {
  const Mask column = indices(j);
  return (column >= static_cast<int32_t>(begin)) & (column < static_cast<int32_t>(end)) &
         (column != static_cast<int32_t>(skip));
}

// Calls visit(i, num_rows, dot products) for strips of rows of the tile.
template <class Visit>
SPCL_INLINE void for_each_strip(const Tile& tile, float* scratch, Visit visit) {
  for (int64_t i = 0; i < tile.m; i += kRows) {
    const int64_t num_rows = min_of(kRows, tile.m - i);
    with_rows(num_rows,
              [&](auto rows) { dot_products<decltype(rows)::value>(tile, i, 0, tile.n, scratch); });
    visit(i, num_rows, scratch);
  }
}

SPCL_INLINE Vec times(Vec x, Scale scale) { return x * scale.high + x * scale.low; }

// Adds the powers of kCount rows of dot products to their sums and to those of the columns.
template <int64_t kCount>
SPCL_INLINE void add_exps(const Tile& tile, Scale scale, int64_t i, const float* sims,
                          float* row_sums, float* columns, float* kept, int64_t kept_stride) {
  Vec row_sum[kCount] = {};
  const int64_t whole = tile.is_diagonal ? 0 : tile.n / kLanes * kLanes;
  const auto add = [&](int64_t j, auto is_partial) {
    Vec column = load(columns + j);
    for (int64_t r = 0; r < kCount; ++r) {
      const Vec x = times(load(sims + r * kTileStride + j), scale);
      if (kept) store(kept + (i + r) * kept_stride + j, x);
      Vec e = exp2_bounded(x);
      if (is_partial.value) {
        e = select(in_range(j, 0, tile.n, tile.is_diagonal ? i + r : -1), e, Vec{});
      }
      row_sum[r] += e;
      column += e;
    }
    store(columns + j, column);
  };
  for (int64_t j = 0; j < whole; j += kLanes) add(j, Int<false>{});
  for (int64_t j = whole; j < tile.n; j += kLanes) add(j, Int<true>{});
  for (int64_t r = 0; r < kCount; ++r) row_sums[i + r] = sum(row_sum[r]);
}

void exp_sums(const Tile& tile, Scale scale, float* scratch, float* row_sums, float* col_sums,
              float* kept, int64_t kept_stride) {
  constexpr int64_t kTogether = 2;  // rows that share the loads and stores of column sums
  static_assert(kRows % kTogether == 0);
  alignas(64) float columns[kTileStride] = {};
  for_each_strip(tile, scratch, [&](int64_t i, int64_t num_rows, const float* sims) {
    int64_t r = 0;
    for (; r + kTogether <= num_rows; r += kTogether) {
      add_exps<kTogether>(tile, scale, i + r, sims + r * kTileStride, row_sums, columns, kept,
                          kept_stride);
    }
    for (; r < num_rows; ++r) {
      add_exps<1>(tile, scale, i + r, sims + r * kTileStride, row_sums, columns, kept, kept_stride);
    }
  });
  __builtin_memcpy(col_sums, columns, sizeof(float) * tile.n);
}

// A shift that is not finite would turn inf - inf into NaN.
SPCL_INLINE float finite_or_zero(float x) { return x - x == 0 ? x : 0; }

void shifted_exp_sums(const Tile& tile, float tau, float* scratch, float* row_shifts,
                      float* row_sums, float* col_shifts, float* col_sums) {
  const int64_t n = tile.n;
  alignas(64) float shifts[kTileStride], sums[kTileStride] = {};
  for (int64_t j = 0; j < kTileStride; ++j) shifts[j] = -__builtin_inff();
  const Vec minus_inf = broadcast(-__builtin_inff());
  for (int64_t i = 0; i < tile.m; i += kRows) {
    const int64_t num_rows = min_of(kRows, tile.m - i);
    float* strip = scratch + i * kTileStride;
    with_rows(num_rows,
              [&](auto rows) { dot_products<decltype(rows)::value>(tile, i, 0, n, strip); });
    for (int64_t r = 0; r < num_rows; ++r) {
      float* sim = strip + r * kTileStride;
      Vec top = minus_inf;
      for (int64_t j = 0; j < n; j += kLanes) {
        const Mask is_pair = in_range(j, 0, n, tile.is_diagonal ? i + r : -1);
        const Vec s = select(is_pair, load(sim + j) / tau, minus_inf);
        store(sim + j, s);
        top = larger(s, top);
        store(shifts + j, larger(s, load(shifts + j)));
      }
      row_shifts[i + r] = finite_or_zero(maximum(top));
    }
  }
  for (int64_t j = 0; j < kTileStride; ++j) shifts[j] = finite_or_zero(shifts[j]);
  for (int64_t i = 0; i < tile.m; ++i) {
    const float* sim = scratch + i * kTileStride;
    Vec row_sum = {};
    for (int64_t j = 0; j < n; j += kLanes) {
      const Vec s = load(sim + j);
      row_sum += exp_any(s - row_shifts[i]);
      store(sums + j, load(sums + j) + exp_any(s - load(shifts + j)));
    }
    row_sums[i] = sum(row_sum);
  }
  __builtin_memcpy(col_shifts, shifts, sizeof(float) * n);
  __builtin_memcpy(col_sums, sums, sizeof(float) * n);
}

// max(0, w) that keeps NaN.
SPCL_INLINE Vec at_least_zero(Vec w) { return select(w < 0, Vec{}, w); }

// Adds c_i w_ij + c_j w_ji where row i and column j have the same label.
SPCL_INLINE void add_positives(const LabelTile& label, int64_t i, int64_t n, const float* exponents,
                               float* h) {
  const Mask y_i = Mask{} + label.y_i[i];
  const float b_i = label.b_i[i], c_i = label.c_i[i];
  for (int64_t j = 0; j < n; j += kLanes) {
    Mask y_j;
    __builtin_memcpy(&y_j, label.y_j + j, sizeof(y_j));
    const Vec x = load(exponents + j) * label.slope;
    const Vec value =
        at_least_zero(x + b_i) * c_i + at_least_zero(x + load(label.b_j + j)) * load(label.c_j + j);
    store(h + j, load(h + j) + select(y_i == y_j, value, Vec{}));
  }
}

// Row i of h from its exponents: gradient(i, j, exponents of columns j ...) and the positives.
template <class Gradient>
SPCL_INLINE void row_gradient(const Tile& tile, int64_t i, const float* exponents,
                              LabelTiles labels, float* h, Gradient gradient) {
  for (int64_t j = 0; j < tile.n; j += kLanes) store(h + j, gradient(i, j, load(exponents + j)));
  for (int64_t k = 0; k < labels.size; ++k) {
    add_positives(labels.labels[k], i, tile.n, exponents, h);
  }
  if (tile.is_diagonal) h[i] = 0;
}

// All rows of h; exponent(dot products) is computed first.
template <class Exponent, class Gradient>
SPCL_INLINE void tile_gradient(const Tile& tile, LabelTiles labels, float* h, Exponent exponent,
                               Gradient gradient) {
  alignas(64) float exponents[kTileStride];
  for (int64_t i = 0; i < tile.m; i += kRows) {
    const int64_t num_rows = min_of(kRows, tile.m - i);
    float* strip = h + i * kTileStride;
    with_rows(num_rows,
              [&](auto rows) { dot_products<decltype(rows)::value>(tile, i, 0, tile.n, strip); });
    for (int64_t r = 0; r < num_rows; ++r) {
      float* row = strip + r * kTileStride;
      for (int64_t j = 0; j < tile.n; j += kLanes) store(exponents + j, exponent(load(row + j)));
      row_gradient(tile, i + r, exponents, labels, row, gradient);
    }
  }
}

void softmax_gradient(const Tile& tile, Scale scale, const float* u_i, const float* u_j,
                      LabelTiles labels, float* h) {
  tile_gradient(
      tile, labels, h, [&](Vec sim) { return times(sim, scale); },
      [&](int64_t i, int64_t j, Vec x) { return exp2_bounded(x) * (load(u_j + j) + u_i[i]); });
}

void kept_softmax_gradient(const Tile& tile, const float* kept, int64_t kept_stride,
                           const float* u_i, const float* u_j, LabelTiles labels, float* h) {
  for (int64_t i = 0; i < tile.m; ++i) {
    row_gradient(
        tile, i, kept + i * kept_stride, labels, h + i * kTileStride,
        [&](int64_t i, int64_t j, Vec x) { return exp2_bounded(x) * (load(u_j + j) + u_i[i]); });
  }
}

void any_softmax_gradient(const Tile& tile, float tau, const float* a_i, const float* a_j,
                          const float* lse_i, const float* lse_j, LabelTiles labels, float* h) {
  tile_gradient(
      tile, labels, h, [&](Vec sim) { return sim / tau; },
      [&](int64_t i, int64_t j, Vec x) {
        return exp_any(x - lse_i[i]) * a_i[i] + exp_any(x - load(lse_j + j)) * load(a_j + j);
      });
}

template <bool kIsHard>
SPCL_INLINE Vec weight_of(Vec loss, float gamma, float inv_gamma) {
  if constexpr (kIsHard) return select(loss <= gamma, broadcast(1), Vec{});
  return at_least_zero(1.0f - loss * inv_gamma);
}

// Columns that any of rows [i, i + num_rows) has positives in, from a multiple of kCols on.
SPCL_INLINE Range strip_range(const PositiveTile& positive, int64_t i, int64_t num_rows) {
  Range range = {kTile, 0};
  for (int64_t r = 0; r < num_rows; ++r) {
    const Range p = positive.positives[i + r];
    if (p.begin >= p.end) continue;
    range.begin = min_of(range.begin, p.begin);
    range.end = max_of(range.end, p.end);
  }
  range.begin = range.begin / kCols * kCols;
  return range;
}

template <bool kIsHard>
void positive_sums_as(const Tile& tile, const PositiveTile& positive, float scale, float* scratch,
                      float* row_losses, float* row_weights, float* col_losses,
                      float* col_weights) {
  const float gamma = positive.weight.gamma, inv_gamma = 1 / gamma;
  alignas(64) float losses[kTileStride] = {}, weights[kTileStride] = {};
  for (int64_t i = 0; i < tile.m; i += kRows) {
    const int64_t num_rows = min_of(kRows, tile.m - i);
    const Range used = strip_range(positive, i, num_rows);
    if (used.begin < used.end) {
      with_rows(num_rows, [&](auto rows) {
        dot_products<decltype(rows)::value>(tile, i, used.begin, used.end, scratch);
      });
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      const Range p = positive.positives[i + r];
      const float* sim = scratch + r * kTileStride;
      Vec loss_sum = {}, weight_sum = {};
      for (int64_t j = p.begin / kLanes * kLanes; j < p.end; j += kLanes) {
        const Mask is_pair = in_range(j, p.begin, p.end, tile.is_diagonal ? i + r : -1);
        const Vec s = load(sim + j) * scale;
        const Vec loss = positive.lse_i[i + r] - s;
        const Vec w = weight_of<kIsHard>(loss, gamma, inv_gamma);
        weight_sum += select(is_pair, w, Vec{});
        loss_sum += select(is_pair, w * loss, Vec{});
        if (!positive.lse_j) continue;
        const Vec back = load(positive.lse_j + j) - s;
        const Vec back_w = weight_of<kIsHard>(back, gamma, inv_gamma);
        store(weights + j, load(weights + j) + select(is_pair, back_w, Vec{}));
        store(losses + j, load(losses + j) + select(is_pair, back_w * back, Vec{}));
      }
      row_losses[i + r] = sum(loss_sum);
      row_weights[i + r] = sum(weight_sum);
    }
  }
  if (!positive.lse_j) return;
  __builtin_memcpy(col_losses, losses, sizeof(float) * tile.n);
  __builtin_memcpy(col_weights, weights, sizeof(float) * tile.n);
}

void positive_sums(const Tile& tile, const PositiveTile& positive, float scale, float* scratch,
                   float* row_losses, float* row_weights, float* col_losses, float* col_weights) {
  const auto run = positive.weight.is_hard ? positive_sums_as<true> : positive_sums_as<false>;
  run(tile, positive, scale, scratch, row_losses, row_weights, col_losses, col_weights);
}

template <bool kIsHard>
void positive_gradient_as(const Tile& tile, const PositiveTile& positive, float scale,
                          const float* c_i, const float* c_j, float* h, Range* used) {
  const float gamma = positive.weight.gamma, inv_gamma = 1 / gamma;
  for (int64_t i = 0; i < tile.m; i += kRows, ++used) {
    const int64_t num_rows = min_of(kRows, tile.m - i);
    float* strip = h + i * kTileStride;
    *used = strip_range(positive, i, num_rows);
    if (used->begin < used->end) {
      with_rows(num_rows, [&](auto rows) {
        dot_products<decltype(rows)::value>(tile, i, used->begin, used->end, strip);
      });
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      const Range p = positive.positives[i + r];
      float* row = strip + r * kTileStride;
      const int64_t begin = p.begin < p.end ? p.begin / kLanes * kLanes : tile.n;
      int64_t j = 0;
      for (; j < begin; ++j) row[j] = 0;
      for (; j < p.end; j += kLanes) {
        const Mask is_pair = in_range(j, p.begin, p.end, tile.is_diagonal ? i + r : -1);
        const Vec s = load(row + j) * scale;
        Vec value = weight_of<kIsHard>(positive.lse_i[i + r] - s, gamma, inv_gamma) * c_i[i + r];
        if (positive.lse_j) {
          const Vec back = load(positive.lse_j + j) - s;
          value += weight_of<kIsHard>(back, gamma, inv_gamma) * load(c_j + j);
        }
        store(row + j, select(is_pair, value, Vec{}));
      }
      for (; j < tile.n; ++j) row[j] = 0;
    }
  }
}

void positive_gradient(const Tile& tile, const PositiveTile& positive, float scale,
                       const float* c_i, const float* c_j, float* h, Range* used) {
  const auto run =
      positive.weight.is_hard ? positive_gradient_as<true> : positive_gradient_as<false>;
  run(tile, positive, scale, c_i, c_j, h, used);
}

// Columns [d, D) of the outputs, in blocks that the registers hold.
template <class Block>
SPCL_INLINE void for_each_column_block(int64_t D, Block block) {
  for (int64_t d = 0; d < D; d += kCols) {
    if (D - d > kLanes) {
      block(d, Int<kColVectors>{});
    } else {
      block(d, Int<1>{});
    }
  }
}

void add_rows(const Tile& tile, const float* h, const float* x_j, int64_t x_stride,
              const Range* used, float* const* out_i) {
  for_each_column_block(tile.D, [&](int64_t d, auto vectors) {
    for (int64_t i = 0; i < tile.m; i += kRows) {
      const Range range = used ? used[i / kRows] : Range{0, tile.n};
      if (range.begin >= range.end) continue;
      with_rows(min_of(kRows, tile.m - i), [&](auto rows) {
        add_product<decltype(rows)::value, decltype(vectors)::value>(
            range.end - range.begin, h + i * kTileStride + range.begin, kTileStride, 1,
            x_j + range.begin * x_stride + d, x_stride, tile.D - d, out_i + i, d);
      });
    }
  });
}

// Rows of h, in whole strips, that are not 0 everywhere in columns [j, j + width).
SPCL_INLINE Range column_range(const Tile& tile, const Range* used, int64_t j, int64_t width) {
  Range range = {tile.m, 0};
  for (int64_t i = 0, strip = 0; i < tile.m; i += kRows, ++strip) {
    if (used[strip].begin >= j + width || used[strip].end <= j) continue;
    range.begin = min_of(range.begin, i);
    range.end = min_of(tile.m, i + kRows);
  }
  return range;
}

void add_columns(const Tile& tile, const float* h, const float* x_i, int64_t x_stride,
                 const Range* used, float* const* out_j) {
  for_each_column_block(tile.D, [&](int64_t d, auto vectors) {
    for (int64_t j = 0; j < tile.n; j += kRows) {
      const int64_t width = min_of(kRows, tile.n - j);
      const Range range = used ? column_range(tile, used, j, width) : Range{0, tile.m};
      if (range.begin >= range.end) continue;
      with_rows(width, [&](auto rows) {
        add_product<decltype(rows)::value, decltype(vectors)::value>(
            range.end - range.begin, h + range.begin * kTileStride + j, 1, kTileStride,
            x_i + range.begin * x_stride + d, x_stride, tile.D - d, out_j + j, d);
      });
    }
  });
}

}  // namespace
}  // namespace SPCL_ISA

#define SPCL_KERNEL_TABLE(table, label) \
  extern const TileKernels table = {    \
      label,                            \
      SPCL_ISA::kCols,                  \
      SPCL_ISA::pack,                   \
      SPCL_ISA::copy,                   \
      SPCL_ISA::max_squared_norm,       \
      SPCL_ISA::exp_sums,               \
      SPCL_ISA::shifted_exp_sums,       \
      SPCL_ISA::softmax_gradient,       \
      SPCL_ISA::kept_softmax_gradient,  \
      SPCL_ISA::any_softmax_gradient,   \
      SPCL_ISA::positive_sums,          \
      SPCL_ISA::positive_gradient,      \
      SPCL_ISA::kRows,                  \
      SPCL_ISA::add_rows,               \
      SPCL_ISA::add_columns,            \
  }

}  // namespace spcl
