// Matrix products of a tile. A micro-tile, kRows x (1 to kVectors) vectors, lives in registers:
// SPCL_ROWS and SPCL_VECTORS leave some for the vectors of the right operand and a broadcast value.
// Sums of rows with fewer vectors take more rows instead: fewer sums than these would wait for each
// other.
//
// Three forms of an operand:
//   slivers  z^T, kCols rows of z each, (D, kCols): both sides of a dot product. A multiple of
//   kRows,
//           so that a strip of kRows rows lies in one sliver.
//   slices  z, 1 to kVectors vectors of features each, (rows, width): the right side of h z.
//   h       row-major of stride kTileStride, read along rows (h z) or columns (h^T z).
// So all strides but the one along D are constants, and the inner loops hold nothing but loads,
// broadcasts from memory and multiply-adds: tests/native/test_disassembly.py.
//
// Included inside the namespace of an instruction set, after vector.h.

constexpr int64_t kRows = SPCL_ROWS;
constexpr int64_t kVectors = SPCL_VECTORS;
constexpr int64_t kCols = kVectors * kLanes;
static_assert(kCols % kRows == 0 && kTile % kCols == 0 && kPad % kLanes == 0);
static_assert(kCachedRows % kCols == 0 && kTile % kCachedRows == 0);

template <int64_t kValue>
struct Int {
  static constexpr int64_t value = kValue;
};

// Calls f with `vectors`, from 1 to kVectors, as a constant.
template <int64_t kCandidate = kVectors, class F>
SPCL_INLINE void with_vectors(int64_t vectors, F f) {
  if constexpr (kCandidate == 1) {
    f(Int<1>{});
  } else if (vectors == kCandidate) {
    f(Int<kCandidate>{});
  } else {
    with_vectors<kCandidate - 1>(vectors, f);
  }
}

// Calls finish(sums) with the R x V vectors of a (R, K) times b (K, V * kLanes). Only in a function
// of its own, SPCL_ALONE, has the compiler all registers for the sums.
template <int64_t R, int64_t V, int64_t kRowStride, int64_t kDepthStride, int64_t kRightStride,
          class F>
SPCL_INLINE void multiply(int64_t K, const float* a, const float* b, F finish) {
  Vec sums[R][V] = {};
#pragma GCC unroll 2
  for (const float* end = b + K * kRightStride; b != end; a += kDepthStride, b += kRightStride) {
    Vec right[V];
    for (int64_t v = 0; v < V; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 24
    for (int64_t r = 0; r < R; ++r) {
      const Vec left = broadcast(a[r * kRowStride]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) sums[r][v] += left * right[v];
    }
  }
  finish(sums);
}

template <int64_t V>
SPCL_ALONE void dot_products(int64_t D, const float* a, const float* b, float* sims) {
  multiply<kRows, V, 1, kCols, kCols>(D, a, b, [&](const Vec(&sums)[kRows][V]) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) store(sims + r * kCols + v * kLanes, sums[r][v]);
    }
  });
}
// Where a strip that starts at row i lies in the slivers.
SPCL_INLINE const float* strip_of(const float* slivers, int64_t D, int64_t i) {
  return slivers + i / kCols * kCols * D + i % kCols;
}

// Begins to fetch a few lines of what a later tile reads, two operands for a product: enough for
// 128 features, and few enough at once for the products to go on.
SPCL_INLINE void fetch(Ahead* ahead) {
  constexpr int64_t kLines = 12;
  if (!ahead || ahead->size == 0) return;
  Ahead::Packed& packed = ahead->operands[ahead->size - 1];
#pragma GCC unroll 16
  for (int64_t k = 0; k < kLines; ++k) __builtin_prefetch(packed.begin + k * Ahead::kLine, 0, 2);
  packed.begin += kLines * Ahead::kLine;
  if (packed.begin >= packed.end) --ahead->size;
}

// The first column that pairs with row i: of a diagonal tile, the first above the diagonal.
SPCL_INLINE int64_t first_column(const Tile& tile, int64_t i) {
  return tile.is_diagonal ? i + 1 : 0;
}

// Calls visit(i, num_rows, j, width) for every micro-tile of the tile: rows [i, i + num_rows),
// columns [j, j + width). Of a diagonal tile, those wholly below the diagonal are left out.
//
// A sliver of columns stays in the first-level cache while all strips of rows pass it.
template <class Visit>
SPCL_INLINE void for_each_place(const Tile& tile, Visit visit) {
  for (int64_t j = 0; j < tile.n; j += kCols) {
    const int64_t width = min_of(kCols, tile.n - j);
    const int64_t end = tile.is_diagonal ? min_of(tile.m, j + kCols) : tile.m;
    for (int64_t i = 0; i < end; i += kRows) visit(i, min_of(kRows, tile.m - i), j, width);
  }
}

// Calls visit(i, num_rows, j, width, sims) with the dot products of every micro-tile, of stride
// kCols. `used`, where given, has for each strip the columns that matter; micro-tiles without any
// are left out.
template <class Visit>
SPCL_INLINE void for_each_micro_tile(const Tile& tile, const Range* used, Visit visit) {
  alignas(64) float sims[kRows * kCols];
  for_each_place(tile, [&](int64_t i, int64_t num_rows, int64_t j, int64_t width) {
    if (used && (used[i / kRows].begin >= j + width || used[i / kRows].end <= j)) return;
    with_vectors((width + kLanes - 1) / kLanes, [&](auto vectors) {
      dot_products<decltype(vectors)::value>(tile.D, strip_of(tile.rows, tile.D, i),
                                             tile.cols + j * tile.D, sims);
    });
    fetch(tile.ahead);
    visit(i, num_rows, j, width, sims);
  });
}

// Makes h of a diagonal tile what it is above the diagonal.
SPCL_INLINE void mirror(const Tile& tile, float* h) {
  if (!tile.is_diagonal) return;
  for (int64_t i = 0; i < tile.m; ++i) {
    for (int64_t j = 0; j < i; ++j) h[i * kTileStride + j] = h[j * kTileStride + i];
  }
}

// Calls f(first vector, number of vectors) for slices of D features as equal as they can be.
template <class F>
SPCL_INLINE void for_each_slice(int64_t D, F f) {
  const int64_t num_vectors = (D + kLanes - 1) / kLanes;
  for (int64_t first = 0, count; first < num_vectors; first += count) {
    const int64_t rest = num_vectors - first, slices = (rest + kVectors - 1) / kVectors;
    count = (rest + slices - 1) / slices;
    f(first, count);
  }
}

// Rows of h, or columns, that are multiplied with V vectors of features at once.
template <int64_t V>
constexpr int64_t kRowsOf = kRows * kVectors / V;

// Adds a (kRowsOf<V>, K) times b (K, V * kLanes) to features [d, D) of the first num_rows of `out`.
template <int64_t V, int64_t kRowStride, int64_t kDepthStride>
SPCL_ALONE void add_product(int64_t K, const float* a, const float* b, int64_t D, int64_t d,
                            int64_t num_rows, float* const* out) {
  constexpr int64_t R = kRowsOf<V>;
  static_assert(kTile % R == 0);
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t v = 0; v < V; ++v) __builtin_prefetch(out[r] + d + v * kLanes, 1);
  }
  multiply<R, V, kRowStride, kDepthStride, V * kLanes>(K, a, b, [&](const Vec(&sums)[R][V]) {
    if (num_rows == R && D - d >= V * kLanes) {
#pragma GCC unroll 24
      for (int64_t r = 0; r < R; ++r) {
        float* target = out[r] + d;
#pragma GCC unroll 4
        for (int64_t v = 0; v < V; ++v) {
          store(target + v * kLanes, load(target + v * kLanes) + sums[r][v]);
        }
      }
      return;
    }
    alignas(64) float rest[R][V * kLanes];
    __builtin_memcpy(rest, sums, sizeof(rest));
    const int64_t width = min_of(V * kLanes, D - d);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t k = 0; k < width; ++k) out[r][d + k] += rest[r][k];
    }
  });
}

// The columns of h outside of which rows [i, i + num_rows) are 0.
SPCL_INLINE Range row_range(const Tile& tile, const Range* used, int64_t i, int64_t num_rows) {
  if (!used) return {0, tile.n};
  Range range = {tile.n, 0};
  for (int64_t strip = i / kRows; strip * kRows < i + num_rows; ++strip) {
    if (used[strip].begin >= used[strip].end) continue;
    range.begin = min_of(range.begin, used[strip].begin);
    range.end = max_of(range.end, used[strip].end);
  }
  return range;
}

void add_rows(const Tile& tile, const float* h, const float* x_j, const Range* used,
              float* const* out_i) {
  for_each_slice(tile.D, [&](int64_t first, int64_t count) {
    with_vectors(count, [&](auto vectors) {
      constexpr int64_t V = decltype(vectors)::value;
      const float* x = x_j + first * kLanes * tile.n;
      for (int64_t i = 0; i < tile.m; i += kRowsOf<V>) {
        const int64_t num_rows = min_of(kRowsOf<V>, tile.m - i);
        const Range range = row_range(tile, used, i, num_rows);
        if (range.begin >= range.end) continue;
        fetch(tile.ahead);
        add_product<V, kTileStride, 1>(range.end - range.begin, h + i * kTileStride + range.begin,
                                       x + range.begin * V * kLanes, tile.D, first * kLanes,
                                       num_rows, out_i + i);
      }
    });
  });
}

// The rows of h, in whole strips, outside of which columns [j, j + width) are 0.
SPCL_INLINE Range column_range(const Tile& tile, const Range* used, int64_t j, int64_t width) {
  if (!used) return {0, tile.m};
  Range range = {tile.m, 0};
  for (int64_t i = 0, strip = 0; i < tile.m; i += kRows, ++strip) {
    if (used[strip].begin >= j + width || used[strip].end <= j) continue;
    range.begin = min_of(range.begin, i);
    range.end = min_of(tile.m, i + kRows);
  }
  return range;
}

void add_columns(const Tile& tile, const float* h, const float* x_i, const Range* used,
                 float* const* out_j) {
  for_each_slice(tile.D, [&](int64_t first, int64_t count) {
    with_vectors(count, [&](auto vectors) {
      constexpr int64_t V = decltype(vectors)::value;
      const float* x = x_i + first * kLanes * tile.m;
      for (int64_t j = 0; j < tile.n; j += kRowsOf<V>) {
        const int64_t width = min_of(kRowsOf<V>, tile.n - j);
        const Range range = column_range(tile, used, j, width);
        if (range.begin >= range.end) continue;
        fetch(tile.ahead);
        add_product<V, 1, kTileStride>(range.end - range.begin, h + range.begin * kTileStride + j,
                                       x + range.begin * V * kLanes, tile.D, first * kLanes, width,
                                       out_j + j);
      }
    });
  });
}
